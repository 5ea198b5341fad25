"""A weighted sum of losses bound to the data of one call."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...datums.errors import LossContractError
from ...datums.types import Datum
from ..batch.outputs import Outputs
from ..reductions import Count
from ..stats import Stat
from .bound import BoundLoss


class BoundMixture(BoundLoss):
    """A weighted sum of losses: one total and one denominator per part.

    parts: (factor, loss, the keys that it reads).
    """

    def __init__(self, name: str, datums: Sequence[Datum], parts: Sequence[tuple[float, BoundLoss, set[str]]]) -> None:
        outputs = tuple(dict.fromkeys(output for _, part, _ in parts for output in part.outputs))
        super().__init__(name, datums, outputs, is_linear=all(part.is_linear for _, part, _ in parts))
        self._parts = parts

    def part(self, order: Sequence[int]) -> BoundMixture:
        """The mixture of its parts' parts."""
        parts = [(factor, part.part(order), keys) for factor, part, keys in self._parts]
        return BoundMixture(self.name, self.chosen(order), parts)

    def tensors(self, computed: Tensor | None) -> dict[str, Tensor]:
        """Those of all parts."""
        own = [part.tensors(computed) for _, part, _ in self._parts]
        return {f"{i} {name}": tensor for i, tensors in enumerate(own) for name, tensor in tensors.items()}

    def placed(self, tensors: Mapping[str, Tensor]) -> BoundMixture:
        """The same mixture, its `tensors` on another device."""
        own: list[dict[str, Tensor]] = [{} for _ in self._parts]
        for name, tensor in tensors.items():
            i, _, rest = name.partition(" ")
            own[int(i)][rest] = tensor
        parts = [(factor, part.placed(its), keys) for (factor, part, keys), its in zip(self._parts, own, strict=True)]
        return BoundMixture(self.name, self.datums, parts)

    def check_outputs(self, outputs: Outputs) -> None:
        """Of what any part reads, part by part."""
        for _, part, _ in self._parts:
            part.check_outputs(outputs)

    @cached_property
    def active(self) -> Tensor:
        """[positions of all datums] bool: where any part reads the model's outputs."""
        masks = [part.active for _, part, _ in self._parts if part.outputs != ("embeddings",)]
        return torch.stack(masks).any(0) if masks else torch.zeros(0, dtype=torch.bool)

    @cached_property
    def count(self) -> Count:
        """One denominator per part."""
        return Count(tuple(value for _, part, _ in self._parts for value in part.count.values))

    def check(self, *, strict: bool = False, others: Collection[str] = ()) -> None:
        """Part by part; no part takes another part's keys for misspellings of its own."""
        known = set(others).union(*(keys for _, _, keys in self._parts))
        for _, part, _ in self._parts:
            part.check(strict=strict, others=known)

    def terms(self, outputs: Any, order: Sequence[int] | None = None) -> tuple[Tensor, dict[str, Stat]]:
        """One total per part [parts], factors applied, and the parts' metrics as `part/metric`."""
        given = self.given(outputs, order)
        totals: list[Tensor] = []
        metrics: dict[str, Stat] = {}
        for factor, part, _ in self._parts:
            total, part_metrics = part.terms(given, order)
            totals.append(factor * total)
            metrics.update({f"{part.name}/{key}": stat for key, stat in part_metrics.items()})
        return (torch.stack(totals) if len(totals) > 1 else totals[0]), metrics


def factor_of(value: Any, name: str) -> float:
    """A factor of a loss as a finite float. Raises LossContractError for anything else."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise LossContractError(
            f"a factor of {name} is a fixed number; a parameter would not be learned. Hold it in a function or module of "
            "your own"
        )
    try:
        factor = float(value)
    except (TypeError, ValueError):
        raise LossContractError(f"{name} is multiplied by numbers, not by {value!r:.60}") from None
    if not math.isfinite(factor):
        raise LossContractError(f"{name} is multiplied by {factor}: a factor is a finite number")
    return factor
