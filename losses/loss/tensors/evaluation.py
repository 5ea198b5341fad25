"""From packed tensors and model outputs to the reduced loss and its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ....datums.errors import EmptyLossError, LossContractError, ShapeError, WeightsError
from ...batch.outputs import Outputs
from ...batch.packed import Packed
from ...reductions import Count
from ...stats import Stat
from ..evaluate import evaluate
from .call import Part, Whole
from .host import to_device
from .metrics import Metrics

#: What `denominator` may be: one number per part of a mixture.
Denominator = Count | Tensor | float | int | None


def denominators_as_tensor(loss: Whole, denominator: Denominator) -> Tensor | None:
    """[parts], 0 for a part that is not divided; None for none. Raises ShapeError, LossContractError."""
    if denominator is None:
        return None
    if isinstance(denominator, Count):
        denominator = torch.tensor(shares(denominator), dtype=torch.float64, device="cpu")
    if isinstance(denominator, bool) or not isinstance(denominator, Tensor | float | int):
        raise LossContractError(
            f"denominator is a number, a tensor, or what count_tensors gives, not {type(denominator).__name__}"
        )
    tensor = torch.as_tensor(denominator).detach().reshape(-1)
    if len(tensor) != len(loss.parts):
        raise ShapeError(
            f"{loss.name} has {len(loss.parts)} denominators, one per part, but {len(tensor)} were given: add up what "
            "count_tensors gives"
        )
    return tensor


def shares(count: Count) -> list[float]:
    """A denominator as numbers that add up: 0 for a sum, which is not divided."""
    return [0.0 if share is None else share for share in count.values]


def own_count(loss: Whole, packed: list[Packed | None]) -> Count:
    """The denominator of this call's own data; None for a function that reduces itself."""
    counts = [
        Count((None,)) if one is None else one.count(part.reduction, part.norm_length)
        for (_, part), one in zip(loss.parts, packed, strict=True)
    ]
    return Count(tuple(value for count in counts for value in count.values))


def checked_count(loss: Whole, given: Tensor | None, packed: list[Packed | None]) -> Count:
    """What to divide by: `given`, on the host, or else this call's own. Raises EmptyLossError, WeightsError."""
    parts = [part for _, part in loss.parts]
    if given is None:
        if all(one is not None and not len(one.active_datums) for one in packed):
            raise EmptyLossError(
                f"{loss.name}: the mask is 0 everywhere, so there is nothing to train on. A part of a whole may be empty where "
                "denominator= gives the whole's"
            )
        if (count := own_count(loss, packed)).is_zero:
            name = next(part.name for part, value in zip(parts, count.values, strict=True) if value == 0)
            raise EmptyLossError(f"{name}: its reduction has nothing to divide by")
        return count
    values: list[float | None] = []
    for part, number in zip(parts, given.double().tolist(), strict=True):
        is_sum = part.reduction == "sum"
        if is_sum and number != 0:
            raise LossContractError(
                f"{part.name}: its reduction is 'sum', which is not divided, but denominator is {number:g}: leave it out, or "
                f"take another reduction, as in get_loss({part.name!r}, reduction='token-mean')"
            )
        if not is_sum and not (0 < number < float("inf")):
            raise WeightsError(f"{part.name}: denominator is {number:g}: reduction {part.reduction!r} divides by it")
        values.append(None if is_sum else number)
    return Count(tuple(values))


def terms(
    part: Part, packed: Packed, outputs: Mapping[str, Tensor], computed: Tensor | None
) -> tuple[Tensor, dict[str, Stat]]:
    """The loss's total and metrics. computed: [positions] bool on the CPU, which of them the outputs hold; None for all."""
    device = outputs[part.spec.outputs[0]].device
    tensors = {name: to_device(one, device) for name, one in packed.tensors(computed).items()}
    placed = packed.placed(tensors)
    values, metrics = evaluate(part.spec, part.settings, placed, replace(Outputs(is_unchecked=True), **outputs))
    return placed.total(values, part.reduction), metrics


def reduced(loss: Whole, results: list[tuple[Tensor, dict[str, Stat]]], count: Count) -> tuple[Tensor, Metrics]:
    """The parts' totals, each divided by its own denominator and times its factor, added up; and all metrics."""
    if loss.parts[0][1] is loss:
        ((total, metrics),) = results
        return total / count, Metrics(metrics)
    totals = [factor * total for (factor, _), (total, _) in zip(loss.parts, results, strict=True)]
    named: dict[str, Any] = {}
    for (_, part), (_, metrics) in zip(loss.parts, results, strict=True):
        named |= {f"{part.name}/{key}": stat for key, stat in metrics.items()}
    return (torch.stack(totals) if len(totals) > 1 else totals[0]) / count, Metrics(named)
