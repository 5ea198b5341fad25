"""A weighted sum of losses bound to the data of one call."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...datums.types import Datum
from ..batch.outputs import Outputs
from ..reductions import Count
from ..spec.layers import DATUM_OUTPUTS
from ..spec.settings import WEIGHTS_KEY
from ..spec.under_settings import layers_of_all
from ..stats import Stat
from .bound import BoundLoss


@dataclass(frozen=True)
class BoundPart:
    """A part of a mixture. label: what its metrics are named after. keys: the `loss_fn_inputs` keys that it reads."""

    factor: float
    loss: BoundLoss
    label: str
    keys: frozenset[str]


class BoundMixture(BoundLoss):
    """A weighted sum of losses: one total and one denominator per part."""

    def __init__(self, name: str, datums: Sequence[Datum], parts: Sequence[BoundPart]) -> None:
        losses = [part.loss for part in parts]
        outputs = tuple(dict.fromkeys(output for loss in losses for output in loss.outputs))
        keys = tuple(dict.fromkeys(key for loss in losses if _reads_positions(loss) for key in loss.weight_keys))
        super().__init__(
            name,
            datums,
            outputs,
            is_linear=all(loss.is_linear for loss in losses),
            weight_keys=keys or (WEIGHTS_KEY,),
            top_k=max(loss.top_k for loss in losses),
            layers=layers_of_all([loss.layers for loss in losses]),
        )
        self._parts = parts

    def part(self, order: Sequence[int]) -> BoundMixture:
        """The mixture of its parts' parts."""
        parts = [replace(part, loss=part.loss.part(order)) for part in self._parts]
        return BoundMixture(self.name, self.chosen(order), parts)

    def tensors(self, computed: Tensor | None) -> dict[str, Tensor]:
        """Those of all parts."""
        own = [part.loss.tensors(computed) for part in self._parts]
        return {f"{i} {name}": tensor for i, tensors in enumerate(own) for name, tensor in tensors.items()}

    def placed(self, tensors: Mapping[str, Tensor]) -> BoundMixture:
        """The same mixture, its `tensors` on another device."""
        own: list[dict[str, Tensor]] = [{} for _ in self._parts]
        for name, tensor in tensors.items():
            i, _, rest = name.partition(" ")
            own[int(i)][rest] = tensor
        parts = [replace(part, loss=part.loss.placed(its)) for part, its in zip(self._parts, own, strict=True)]
        return BoundMixture(self.name, self.datums, parts)

    def check_outputs(self, outputs: Outputs) -> None:
        """Of what any part reads, part by part."""
        for part in self._parts:
            part.loss.check_outputs(outputs)

    @cached_property
    def active(self) -> Tensor:
        """[positions of all datums] bool: where any part reads the model's outputs."""
        masks = [part.loss.active for part in self._parts if _reads_positions(part.loss)]
        return torch.stack(masks).any(0) if masks else torch.zeros(0, dtype=torch.bool)

    @cached_property
    def count(self) -> Count:
        """One denominator per part."""
        return Count(tuple(value for part in self._parts for value in part.loss.count.values))

    def check(self, *, strict: bool = False, others: Collection[str] = ()) -> None:
        """Part by part; no part takes another part's keys for misspellings of its own."""
        known = set(others).union(*(part.keys for part in self._parts))
        for part in self._parts:
            part.loss.check(strict=strict, others=known)

    def terms(self, outputs: Any, order: Sequence[int] | None = None) -> tuple[Tensor, dict[str, Stat]]:
        """One total per part [parts], factors applied, and the parts' metrics as `part/metric`."""
        given = self.given(outputs, order)
        totals: list[Tensor] = []
        metrics: dict[str, Stat] = {}
        for part in self._parts:
            total, part_metrics = part.loss.terms(given, order)
            totals.append(part.factor * total)
            metrics.update({f"{part.label}/{key}": stat for key, stat in part_metrics.items()})
        return (torch.stack(totals) if len(totals) > 1 else totals[0]), metrics


def _reads_positions(loss: BoundLoss) -> bool:
    return any(name not in DATUM_OUTPUTS for name in loss.outputs)
