"""The metrics of a loss on tensors: floats that are read from the device when they are first asked for, and that merge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ... import stats
from ...stats import Stat
from .host import to_host


class Metrics(Mapping[str, float]):
    """A loss's metrics by name, as floats. `metrics["nll"]`, `dict(metrics)`.

    Those of micro-batches add up exactly, as `sum(parts)` or `one + other`: a mean carries its count. `all_reduce` merges
    those of all ranks. Until a number is asked for, nothing waits for the device; then all are read in one copy.
    """

    def __init__(self, parts: Mapping[str, Stat]) -> None:
        self.stats = dict(parts)

    @cached_property
    def _values(self) -> dict[str, float]:
        tensors = {f"total {name}": stat.total for name, stat in self.stats.items()}
        tensors |= {f"count {name}": stat.count for name, stat in self.stats.items()}
        host = to_host(tensors)
        return stats.values(
            {name: Stat(s.kind, host[f"total {name}"], host[f"count {name}"]) for name, s in self.stats.items()}
        )

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stats)

    def __len__(self) -> int:
        return len(self.stats)

    def __repr__(self) -> str:
        return repr(self._values)

    def __add__(self, other: Metrics | int) -> Metrics:
        if isinstance(other, int) and other == 0:  # where the builtin sum() begins
            return self
        return Metrics(stats.merge([self.stats, other.stats])) if isinstance(other, Metrics) else NotImplemented

    __radd__ = __add__

    def all_reduce(self, group: Any = None, device: torch.device | str | None = None) -> Metrics:
        """The metrics over all ranks of a torch.distributed group; every rank calls this, and gets the same.

        device: where the ranks' numbers meet, such as "cuda" for NCCL; by default where the metrics are.
        """
        from torch import distributed

        names = sorted(self.stats)
        add, lowest, highest = distributed.ReduceOp.SUM, distributed.ReduceOp.MIN, distributed.ReduceOp.MAX
        ways = ((("mean", "sum"), add), (("effective",), add), (("min",), lowest), (("max",), highest))
        merged: dict[str, Stat] = {}
        for kinds, how in ways:  # totals of one shape together
            own = [name for name in names if self.stats[name].kind in kinds]
            if own:
                totals = self._stacked([self.stats[name].total for name in own], device)
                distributed.all_reduce(totals, how, group=group)
                merged |= {n: Stat(self.stats[n].kind, total, total) for n, total in zip(own, totals, strict=True)}
        if names:
            counts = self._stacked([self.stats[name].count for name in names], device)
            distributed.all_reduce(counts, group=group)
            for name, count in zip(names, counts, strict=True):
                merged[name] = Stat(merged[name].kind, merged[name].total, count)
        return Metrics({name: merged[name] for name in self.stats})

    def _stacked(self, numbers: list[Tensor], device: torch.device | str | None) -> Tensor:
        where = device if device is not None else next(iter(self.stats.values())).total.device
        return torch.stack([number.to(where) for number in numbers])
