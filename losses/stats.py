"""Metrics that merge exactly: a mean carries its sum and its count, so parts add up to the whole.

A loss returns `{"clip_fraction": stats.mean(clipped), "ratio_max": stats.max(ratio)}`. Values are detached and summed in
float64; nothing leaves the device until `Stat.value()`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.fx import Proxy

Kind = Literal["mean", "sum", "min", "max"]

#: While a loss over [T, K] targets runs: which of these slots hold an active target.
_active: ContextVar[Tensor | None] = ContextVar("active", default=None)


@contextmanager
def counting(slots: Tensor | None) -> Iterator[None]:
    """Within, metrics of tensors in the shape of `slots` read only the elements where it is true."""
    token = _active.set(slots)
    try:
        yield
    finally:
        _active.reset(token)


@dataclass(frozen=True)
class Stat:
    """A number that merges with the same number of another part of the data.

    total: 0-d; the sum of the values (`mean`, `sum`) or their extreme (`min`, `max`). count: 0-d, how many values.
    """

    kind: Kind
    total: Tensor
    count: Tensor

    def merge(self, other: Stat) -> Stat:
        """The number over both parts. Raises ValueError when the kinds differ."""
        if self.kind != other.kind:
            raise ValueError(f"cannot merge a {self.kind} with a {other.kind}")
        combine = {"mean": torch.add, "sum": torch.add, "min": torch.minimum, "max": torch.maximum}[self.kind]
        return Stat(self.kind, combine(self.total, other.total), self.count + other.count)

    def value(self) -> float:
        """The number itself; NaN for the mean or extreme of nothing."""
        if self.kind == "sum":
            return float(self.total)
        if float(self.count) == 0:
            return float("nan")
        return float(self.total / self.count) if self.kind == "mean" else float(self.total)


def mean(values: Tensor) -> Stat:
    """The mean over all elements; booleans count as 0 and 1."""
    return Stat("mean", *_sum_and_count(values))


def sum(values: Tensor) -> Stat:
    """The sum over all elements; booleans count as 0 and 1."""
    return Stat("sum", *_sum_and_count(values))


def min(values: Tensor) -> Stat:
    """The smallest element."""
    return _extreme("min", values, float("inf"))


def max(values: Tensor) -> Stat:
    """The largest element."""
    return _extreme("max", values, float("-inf"))


def merge(parts: Iterable[Mapping[str, Stat]]) -> dict[str, Stat]:
    """The metrics of the whole from those of its parts, name by name."""
    merged: dict[str, Stat] = {}
    for part in parts:
        for name, stat in part.items():
            merged[name] = merged[name].merge(stat) if name in merged else stat
    return merged


def values(stats: Mapping[str, Stat]) -> dict[str, float]:
    """The numbers themselves."""
    return {name: stat.value() for name, stat in stats.items()}


def _flat(values: Tensor) -> Tensor:
    slots = _active.get()
    if slots is not None and values.shape == slots.shape:
        return values.detach()[slots.to(values.device)]
    return values.detach().reshape(-1)


def _sum_and_count(values: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(values, Proxy):  # traced: single_datum.py sums them over active positions
        return values, values
    flat = _flat(values)
    return flat.sum(dtype=torch.float64), torch.tensor(float(flat.numel()), dtype=torch.float64, device=flat.device)


def _extreme(kind: Literal["min", "max"], values: Tensor, of_nothing: float) -> Stat:
    if isinstance(values, Proxy):
        return Stat(kind, values, values)
    flat = _flat(values).to(torch.float64)
    start = torch.full((1,), of_nothing, dtype=torch.float64, device=flat.device)
    joined = torch.cat([start, flat])
    total = joined.min() if kind == "min" else joined.max()
    return Stat(kind, total, torch.tensor(float(flat.numel()), dtype=torch.float64, device=flat.device))
