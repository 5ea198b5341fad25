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


def _counted(values: Tensor, filler: float) -> tuple[Tensor, Tensor]:
    """The values, with `filler` in the slots that do not count, and how many count, which the shape says where all do."""
    values, slots = values.detach(), _active.get()
    if slots is None or values.shape != slots.shape:
        return values, torch.tensor(float(values.numel()), dtype=torch.float64, device="cpu")
    slots = slots.to(values.device)
    return values.where(slots, filler), slots.sum(dtype=torch.float64)


def _sum_and_count(values: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(values, Proxy):  # traced: single_datum.py sums them over active positions
        return values, values
    counted, count = _counted(values, 0)
    return counted.sum(dtype=torch.float64), count


def _extreme(kind: Literal["min", "max"], values: Tensor, of_nothing: float) -> Stat:
    if isinstance(values, Proxy):
        return Stat(kind, values, values)
    counted, count = _counted(values.to(torch.float64), of_nothing)
    if not counted.numel():
        return Stat(kind, torch.full((), of_nothing, dtype=torch.float64, device=counted.device), count)
    return Stat(kind, counted.min() if kind == "min" else counted.max(), count)
