"""Merging: cut the data anywhere that does not separate coupled datums, and the parts merge to the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st

from ....datums.errors import LossCheckError
from ....datums.types import Datum
from ... import stats
from ...batch.groups import units_of
from ...batch.outputs import as_outputs
from ...loss.loss import Loss
from ..checks import Check, batches, ordinary
from ..evaluation import (
    TOLERANCES,
    Evaluation,
    boundaries,
    cut_up,
    evaluate,
    evaluate_parts,
    gradients,
    leaves,
    same,
    same_metrics,
    select,
    terms,
)
from ..loss_under_test import LossUnderTest, OutputLists


def law_micro_batches(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, cuts: Sequence[int]) -> None:
    """Totals, denominators, gradients and metrics of micro-batches merge to those of the whole."""
    whole_outputs = leaves(outputs, loss.dtype)
    parts = cut_up(loss, data, whole_outputs, cuts)
    where = "tokens" if loss.couples == "token" and loss.reads_tokens else f"{loss.couples}s"
    whole = evaluate(loss, data, outputs)
    same(
        whole,
        evaluate_parts(loss, parts, whole_outputs),
        f"when the data was cut into {len(parts)} parts between {where}",
    )


def law_ranks(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, ranks: Sequence[int]) -> None:
    """Datums dealt out to ranks, one of them without any, give the result of a single rank, with the same metric names."""
    whole_outputs = leaves(outputs, loss.dtype)
    groups = loss.groups(data)
    last = max(ranks, default=0) + 1
    parts = []
    for rank in range(last + 1):  # rank `last` gets no datums
        chosen = [i for group, owner in zip(groups, ranks, strict=True) if owner == rank for i in group]
        parts.append(select(data, whole_outputs, chosen))
    total, _ = terms(loss.wrapped, [], {}, loss.dtype)
    if not bool((total == 0).all()) or not total.requires_grad:
        raise LossCheckError(
            f"the total of no datums is {total.tolist()}{'' if total.requires_grad else ' without a graph'}, but a rank "
            "without data must contribute 0, computed from its (empty) outputs"
        )
    whole = evaluate(loss, data, outputs)
    same(whole, evaluate_parts(loss, parts, whole_outputs), f"when the data was dealt out to {last + 1} ranks")


def law_bound_parts(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, ranks: Sequence[int]) -> None:
    """A call that was bound as a whole merges from parts that separate only what the loss's function does not couple.

    So the trainer cuts it: denominators, also those of a group of answers, are known before the first part.
    """
    own = leaves(outputs, loss.dtype)
    bound, parts = loss.wrapped.prepare(data), []
    for rank in sorted(set(ranks)):
        chosen = [i for unit, owner in zip(_units(loss, data), ranks, strict=True) if owner == rank for i in unit]
        given = {name: [tensors[i] for i in chosen] for name, tensors in own.items()}
        parts.append((bound.part(chosen), as_outputs(given, [data[i] for i in chosen], loss.outputs[0])))
    terms_of_parts = [part.terms(given) for part, given in parts]
    value = torch.stack([(total / bound.count).double() for total, _ in terms_of_parts]).sum()
    total = torch.stack([total.double() for total, _ in terms_of_parts]).sum(0)
    metrics = stats.merge(metrics for _, metrics in terms_of_parts)
    count: Any = sum((part.count for part, _ in parts[1:]), parts[0][0].count)
    whole = evaluate(loss, data, outputs)
    merged = Evaluation(total.detach(), count, value.detach(), gradients(value, own), metrics, whole.tolerance)
    same(whole, merged, f"when the bound call was cut into {len(parts)} parts")


def _units(loss: LossUnderTest, data: Sequence[Datum]) -> list[list[int]]:
    """Indices of the datums that the trainer keeps together."""
    if loss.wrapped.cut_by == "group" and (units := units_of(data, [part.spec for part in loss.parts])) is not None:
        return units
    step = 2 if loss.has_pairs else 1
    return [list(range(i, i + step)) for i in range(0, len(data), step)]


def order(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, places: Sequence[int]) -> None:
    """The order of datums, or of groups of datums that belong together, changes nothing."""
    whole_outputs = leaves(outputs, loss.dtype)
    groups = _movable(loss, len(data))
    moved = list(range(len(data)))
    for new, old in zip(groups, (groups[i] for i in places), strict=True):
        for to, source in zip(new, old, strict=True):
            moved[to] = source
    whole = evaluate(loss, data, outputs)
    other = evaluate_parts(loss, [select(data, whole_outputs, moved)], whole_outputs)
    same(whole, other, f"when the datums were put in order {moved}")


def metrics_law(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """Metrics are detached numbers that merge, and their names depend only on the settings."""
    _, whole = terms(loss.wrapped, data, leaves(outputs, loss.dtype))
    for name, stat in whole.items():
        numbers = (2,) if stat.kind == "effective" else ()
        if stat.total.shape != numbers or stat.count.ndim or stat.total.requires_grad:
            raise LossCheckError(
                f"metric {name!r} must be detached numbers: use stats.mean, sum, min, max or effective"
            )
        if float(stat.count) > 0 and stat.value() != stat.value():
            raise LossCheckError(f"metric {name!r} is NaN over {float(stat.count):g} values")
    if loss.couples == "batch":
        return
    parts = [
        terms(loss.wrapped, *select(data, leaves(outputs, loss.dtype), group), loss.dtype)[1]
        for group in [[], *reversed(loss.groups(data))]
    ]
    kinds = {name: stat.kind for name, stat in whole.items()}
    for part in parts:
        if (own := {name: stat.kind for name, stat in part.items()}) != kinds:
            raise LossCheckError(f"the metrics are {kinds} on all data, but {own} on one datum (or pair), or on none")
    same_metrics(
        whole, stats.merge(parts), "when it was merged from single datums (or pairs)", TOLERANCES[loss.precision]
    )


def _movable(loss: LossUnderTest, count: int) -> list[list[int]]:
    """Groups of positions in the batch that may be exchanged with one another, datum by datum.

    For a mixture those of the part with the largest groups; all datums in one where the groups of another part lie across.
    """
    divisions = [_movable_of(part, count) for part in loss.parts]
    largest = max(divisions, key=lambda groups: max(map(len, groups), default=0))
    return largest if all(_lies_within(groups, largest) for groups in divisions) else [list(range(count))]


def _movable_of(part: Loss, count: int) -> list[list[int]]:
    if (members := part.spec.members(count, part.config)) is not None:
        return members
    if part.couples == "batch" and part.spec.per == "datum" and not part.spec.reads_tokens:
        return [[i, i + count // 2] for i in range(count // 2)]
    step = 2 if part.spec.per == "pair" else 1
    return [list(range(i, i + step)) for i in range(0, count, step)]


def _lies_within(fine: list[list[int]], coarse: list[list[int]]) -> bool:
    """Whether every coarse group is made of whole fine ones, and all in the same way. Datums in no group stay in place."""
    home = {i: (number, place) for number, group in enumerate(coarse) for place, i in enumerate(group)}
    stays = (-1, 0)
    ways: list[list[list[int]]] = [[] for _ in coarse]
    for group in fine:
        homes = [home.get(i, stays) for i in group]
        if len({number for number, _ in homes}) != 1:
            return False
        if homes[0] != stays:
            ways[homes[0][0]].append([place for _, place in homes])
    return all(sorted(way) == sorted(ways[0]) for way in ways)


@st.composite
def _with_cuts(draw: Any, loss: LossUnderTest) -> dict[str, Any]:
    example = draw(batches(loss, min_groups=2))
    last = boundaries(loss, example["data"])
    return {**example, "cuts": sorted(draw(st.sets(st.integers(1, last), min_size=1, max_size=4)))}


@st.composite
def _with_ranks(draw: Any, loss: LossUnderTest) -> dict[str, Any]:
    example = draw(batches(loss))
    count = len(loss.groups(example["data"]))
    return {**example, "ranks": draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))}


@st.composite
def _with_shares(draw: Any, loss: LossUnderTest) -> dict[str, Any]:
    example = draw(batches(loss, min_groups=2))
    count = len(_units(loss, example["data"]))
    return {**example, "ranks": draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))}


@st.composite
def _with_places(draw: Any, loss: LossUnderTest) -> dict[str, Any]:
    example = draw(batches(loss, min_groups=2))
    count = len(_movable(loss, len(example["data"])))
    return {**example, "places": draw(st.permutations(range(count)))}


def _skip_coupled(loss: LossUnderTest) -> str:
    return "it couples the whole batch, so there is no place to cut" if loss.couples == "batch" else ""


def _skip_uncut(loss: LossUnderTest) -> str:
    return "its function couples the whole batch, so there is no place to cut" if loss.wrapped.cut_by == "batch" else ""


def _skip_batch_style(loss: LossUnderTest) -> str:
    return "fn(data, logprobs_list) may depend on the order of datums" if loss.is_batch_style else ""


CHECKS = (
    Check("law_micro_batches", law_micro_batches, _with_cuts, _skip_coupled),
    Check("law_ranks", law_ranks, _with_ranks, _skip_coupled),
    Check("law_bound_parts", law_bound_parts, _with_shares, _skip_uncut),
    Check("order", order, _with_places, _skip_batch_style),
)
METRICS_LAW = Check("metrics_law", metrics_law, ordinary)
