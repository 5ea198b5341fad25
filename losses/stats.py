"""Metrics that merge exactly: a mean carries its sum and its count, so parts add up to the whole.

A loss returns `{"clip_fraction": stats.mean(clipped), "ratio_max": stats.max(ratio)}`. Values are detached and summed in
float64; nothing leaves the device until `Stat.value()`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.fx import Proxy

Kind = Literal["mean", "sum", "min", "max", "effective"]

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

    total: 0-d; the sum of the values (`mean`, `sum`) or their extreme (`min`, `max`); [2], the sum of the values and that of
    their squares (`effective`). count: 0-d, how many values.
    is_known: shapes alone say how many, so `count` is on the CPU wherever `total` is.
    """

    kind: Kind
    total: Tensor
    count: Tensor
    is_known: bool = field(default=False, repr=False, compare=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Stat):
            return NotImplemented
        return self.kind == other.kind and torch.equal(self.total, other.total) and torch.equal(self.count, other.count)

    def merge(self, other: Stat) -> Stat:
        """The number over both parts. Raises ValueError when the kinds differ."""
        if self.kind != other.kind:
            raise ValueError(f"cannot merge a {self.kind} with a {other.kind}")
        combine = {"min": torch.minimum, "max": torch.maximum}.get(self.kind, torch.add)
        return Stat(self.kind, combine(self.total, other.total), self.count + other.count)

    def value(self) -> float:
        """The number itself; NaN for the mean or extreme of nothing."""
        if self.kind == "sum":
            return float(self.total)
        if float(self.count) == 0:
            return float("nan")
        if self.kind == "effective":
            plain, squared = self.total.tolist()
            return plain * plain / (float(self.count) * squared) if squared else 0.0
        return float(self.total / self.count) if self.kind == "mean" else float(self.total)


def mean(values: Tensor, where: Tensor | None = None) -> Stat:
    """The mean over all elements, or those where `where` is true; booleans count as 0 and 1.

    `mean(values[chosen])` is the same, but on a GPU it waits: the size of what is chosen has to be read.
    """
    if where is None:
        return _added_up("mean", values)
    if isinstance(values, Proxy):  # traced: single_datum.py leaves out what selects
        return _added_up("mean", values[where])
    slots = _active.get()
    if slots is not None and where.shape == slots.shape:
        where = where & slots.to(where.device)
    total = torch.where(where, values.detach(), 0).sum(dtype=torch.float64)
    return Stat("mean", total, where.sum(dtype=torch.float64))


def sum(values: Tensor) -> Stat:
    """The sum over all elements; booleans count as 0 and 1."""
    return _added_up("sum", values)


def effective(weights: Tensor) -> Stat:
    """The effective sample size of weights as a share of their number: (Σ w)² / (n Σ w²); 1 where all are equal, 0 where all
    are 0. Kish 1965, Survey Sampling.
    """
    if isinstance(weights, Proxy):
        return Stat("effective", weights, weights)
    counted, count, is_known = _counted(weights, 0)
    counted = counted.to(torch.float64)
    return Stat("effective", torch.stack([counted.sum(), counted.square().sum()]), count, is_known)


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


def _counted(values: Tensor, filler: float) -> tuple[Tensor, Tensor, bool]:
    """The values, with `filler` in the slots that do not count; how many count, and whether the shape says so."""
    values, slots = values.detach(), _active.get()
    if slots is None or values.shape != slots.shape:
        return values, torch.tensor(float(values.numel()), dtype=torch.float64, device="cpu"), True
    slots = slots.to(values.device)
    return values.where(slots, filler), slots.sum(dtype=torch.float64), False


def _added_up(kind: Literal["mean", "sum"], values: Tensor) -> Stat:
    if isinstance(values, Proxy):  # traced: single_datum.py sums them over active positions
        return Stat(kind, values, values)
    counted, count, is_known = _counted(values, 0)
    return Stat(kind, counted.sum(dtype=torch.float64), count, is_known)


def _extreme(kind: Literal["min", "max"], values: Tensor, of_nothing: float) -> Stat:
    if isinstance(values, Proxy):
        return Stat(kind, values, values)
    counted, count, is_known = _counted(values.to(torch.float64), of_nothing)
    total = torch.full((), of_nothing, dtype=torch.float64, device=counted.device)
    if counted.numel():
        total = counted.min() if kind == "min" else counted.max()
    return Stat(kind, total, count, is_known)
