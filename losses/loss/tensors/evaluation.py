"""From packed tensors and model outputs to the reduced loss and its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ....datums.errors import EmptyLossError, LossContractError, ShapeError, WeightsError
from ...batch.outputs import Outputs
from ...batch.packed import Packed
from ...reductions import Count
from ...spec.layers import DATUM_OUTPUTS
from ...spec.vocabulary import TEACHER
from ...stats import Stat
from ..evaluate import evaluated_total
from .batch_style import call_on_datums
from .call import Call
from .host import to_device
from .metrics import Metrics
from .names import Part, Whole
from .packing import Reader
from .sources import HEAD_OUTPUTS, Source

#: What `denominator` may be: one number per part of a mixture.
Denominator = Count | Tensor | float | int | None


def _as_tensor(loss: Whole, denominator: Denominator) -> Tensor | None:
    """[parts], 0 for a part that is not divided; None for none. Raises ShapeError, LossContractError."""
    if denominator is None:
        return None
    if isinstance(denominator, Count):
        denominator = torch.tensor(shares(denominator), dtype=torch.float64, device="cpu")
    if isinstance(denominator, bool) or not isinstance(denominator, Tensor | Real):
        raise LossContractError(
            f"denominator is a number, a tensor, or what count_tensors gives, not {type(denominator).__name__}"
        )
    if not isinstance(denominator, Tensor):
        denominator = torch.tensor(float(denominator), dtype=torch.float64, device="cpu")
    tensor = denominator.detach().reshape(-1)
    if len(tensor) != len(loss.parts):
        raise ShapeError(
            f"{loss.name} has one denominator per part, {len(loss.parts)}, but denominator is {list(tensor.shape)}: add up what "
            "count_tensors gives"
        )
    return tensor


def shares(count: Count) -> list[float]:
    """A denominator as numbers that can be added over parts: 0 for a sum, which is not divided."""
    return [0.0 if share is None else share for share in count.values]


def own_count(loss: Whole, packed: list[Packed | None]) -> Count:
    """The denominator of this call's own data; None for a function that reduces itself."""
    counts = [
        Count((None,)) if one is None else one.count(part.reduction, part.norm_length)
        for (_, part), one in zip(loss.parts, packed, strict=True)
    ]
    return Count(tuple(value for count in counts for value in count.values))


def _checked_count(loss: Whole, given: Tensor | None, packed: list[Packed | None]) -> Count:
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
                f"{part.name} is a sum, which is not divided, but denominator is {number:g}: leave it out"
                + (
                    f", or take a mean, as in get_loss({part.name!r}, reduction='token-mean')"
                    if part.spec.per == "token"
                    else ""
                )
            )
        if not is_sum and not (0 < number < float("inf")):
            raise WeightsError(f"{part.name}: denominator is {number:g}: reduction {part.reduction!r} divides by it")
        values.append(None if is_sum else number)
    return Count(tuple(values))


def evaluated(
    call: Call, denominator: Denominator, source: Source | None = None, teacher: Source | None = None
) -> tuple[Tensor, Metrics]:
    """The reduced loss and its metrics. source: logits or hidden states that missing outputs are computed from. teacher: a teacher's."""
    loss, divisor = call.loss, _as_tensor(call.loss, denominator)
    with torch.no_grad():
        others = {} if divisor is None else {"denominator": divisor}
        reader = Reader(call, others, None if source is None else source.vocabulary)
        packed = [None if part.spec.is_batch_style else reader.packed(part) for _, part in loss.parts]
        count = _checked_count(loss, reader.others.get("denominator"), packed)
    outputs, computed = call.outputs, None
    if source is not None:
        outputs, computed = _computed(reader, packed, source, teacher)
    results = [
        call_on_datums(part, reader, outputs) if one is None else _terms(part, one, outputs, computed)
        for (_, part), one in zip(loss.parts, packed, strict=True)
    ]
    return _reduced(loss, results, count)


def _computed(
    reader: Reader, packed: list[Packed | None], source: Source, teacher: Source | None
) -> tuple[dict[str, Any], Tensor | None]:
    """The outputs at the positions that any part reads, and which these are: [positions] bool on the CPU, None for all."""
    call, device = reader.call, source.given.device
    assert call.labels is not None
    active = torch.ones(call.layout.positions, dtype=torch.bool, device="cpu")
    if all(one is not None for one in packed):
        active = torch.stack([one.active for one in packed if one is not None and one.spec.reads_tokens]).any(0)
    rows = None if bool(active.all()) else to_device(active.nonzero().squeeze(1), device)
    labels = to_device(call.labels, device).clamp(0, source.vocabulary - 1).long()
    names = {name for _, part in call.loss.parts for name in part.spec.outputs if name in HEAD_OUTPUTS}
    top_k = max(part.top_k for _, part in call.loss.parts)
    if top_k > source.vocabulary:
        raise ShapeError(f"{call.loss.name} with top_k={top_k} reads more tokens than there are: {source.vocabulary}")
    made = source.outputs(rows, labels if rows is None else labels[rows], sorted(names), top_k)
    with torch.no_grad():
        made |= {} if teacher is None else {TEACHER: teacher.whole(rows)}
        reader.check_computed(made, rows)
    given = {
        name: values if rows is None or name in DATUM_OUTPUTS else values[rows.to(values.device)]
        for name, values in call.outputs.items()
    }
    return {**given, **made}, None if rows is None else active


def _terms(
    part: Part, packed: Packed, outputs: Mapping[str, Any], computed: Tensor | None
) -> tuple[Tensor, dict[str, Stat]]:
    """The loss's total and metrics. computed: [positions] bool on the CPU, which of them the outputs hold; None for all."""
    first = outputs[part.spec.outputs[0]]
    device = first.device if isinstance(first, Tensor) else first.tensors[0].device
    tensors = {name: to_device(one, device) for name, one in packed.tensors(computed).items()}
    placed = packed.placed(tensors)
    given = replace(Outputs(is_unchecked=True), **outputs)
    return evaluated_total(part.spec, part.settings, placed, given, part.reduction)


def _reduced(loss: Whole, results: list[tuple[Tensor, dict[str, Stat]]], count: Count) -> tuple[Tensor, Metrics]:
    """The parts' totals, each divided by its own denominator and times its factor, added up; and all metrics."""
    if loss.parts[0][1] is loss:
        ((total, metrics),) = results
        return total / count, Metrics(metrics)
    totals = [factor * total for (factor, _), (total, _) in zip(loss.parts, results, strict=True)]
    named: dict[str, Any] = {}
    for (_, part), (_, metrics) in zip(loss.parts, results, strict=True):
        named |= {f"{part.label}/{key}": stat for key, stat in metrics.items()}
    return (torch.stack(totals) if len(totals) > 1 else totals[0]) / count, Metrics(named)
