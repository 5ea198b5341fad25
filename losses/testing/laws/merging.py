"""The law: cut the data anywhere that separates nothing the loss couples, and the parts merge to the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from ....datums.errors import LossCheckError
from ....datums.types import Datum
from ... import stats
from .. import checks as protocol
from ..checks import Check
from ..evaluation import boundaries, cut_up, evaluate, evaluate_parts, leaves, same, same_metrics, select
from ..loss_under_test import OutputLists, Subject, terms


def law_micro_batches(subject: Subject, data: Sequence[Datum], outputs: OutputLists, cuts: Sequence[int]) -> None:
    """Totals, denominators, gradients and metrics of micro-batches merge to those of the whole."""
    own = leaves(outputs)
    parts = cut_up(subject, data, own, cuts)
    where = "tokens" if subject.couples == "token" and subject.reads_tokens else f"{subject.couples}s"
    whole = evaluate(subject, data, outputs)
    same(whole, evaluate_parts(subject, parts, own), f"when the data was cut into {len(parts)} parts between {where}")


def law_ranks(subject: Subject, data: Sequence[Datum], outputs: OutputLists, ranks: Sequence[int]) -> None:
    """Units dealt out to ranks, one of which gets none, give what a single rank gives, on the same names."""
    own = leaves(outputs)
    units = subject.units(data)
    last = max(ranks, default=0) + 1
    parts = []
    for rank in range(last + 1):  # nobody is dealt to rank `last`
        chosen = [i for unit, owner in zip(units, ranks, strict=True) if owner == rank for i in unit]
        parts.append(select(data, own, chosen))
    total, _ = terms(subject.loss, [], {})
    if not bool((total == 0).all()) or not total.requires_grad:
        raise LossCheckError(
            f"the total of no datums is {total.tolist()}{'' if total.requires_grad else ' without a graph'}, but a rank "
            "without data must contribute 0, by way of its (empty) outputs"
        )
    whole = evaluate(subject, data, outputs)
    same(whole, evaluate_parts(subject, parts, own), f"when the data was dealt out to {last + 1} ranks")


def order(subject: Subject, data: Sequence[Datum], outputs: OutputLists, places: Sequence[int]) -> None:
    """The order of datums (of pairs, of partners) changes nothing."""
    own = leaves(outputs)
    groups = _movable(subject, len(data))
    moved = list(range(len(data)))
    for new, old in zip(groups, (groups[i] for i in places), strict=True):
        for to, source in zip(new, old, strict=True):
            moved[to] = source
    whole = evaluate(subject, data, outputs)
    same(whole, evaluate_parts(subject, [select(data, own, moved)], own), f"when the datums were put in order {moved}")


def metrics_law(subject: Subject, data: Sequence[Datum], outputs: OutputLists) -> None:
    """Metrics are detached numbers that merge; their names depend on the configuration alone."""
    _, whole = terms(subject.loss, data, leaves(outputs))
    for name, stat in whole.items():
        if stat.total.ndim or stat.count.ndim or stat.total.requires_grad:
            raise LossCheckError(f"metric {name!r} must be two detached numbers: use stats.mean, sum, min or max")
        if float(stat.count) > 0 and stat.value() != stat.value():
            raise LossCheckError(f"metric {name!r} is NaN over {float(stat.count):g} values")
    if subject.couples == "batch":
        return
    parts = [
        terms(subject.loss, *select(data, leaves(outputs), unit))[1] for unit in [[], *reversed(subject.units(data))]
    ]
    kinds = {name: stat.kind for name, stat in whole.items()}
    for part in parts:
        if (found := {name: stat.kind for name, stat in part.items()}) != kinds:
            raise LossCheckError(f"the metrics are {kinds} on all data, but {found} on one unit or none")
    same_metrics(whole, stats.merge(parts), "when it was merged from single units")


def _movable(subject: Subject, count: int) -> list[list[int]]:
    """Groups of places that may be exchanged with one another, datum by datum."""
    only = subject.only
    step = 2 if subject.has_pairs else 1
    if only is not None and (members := only.spec.members(count, only.config)) is not None:
        return members
    if only is not None and subject.couples == "batch" and only.spec.per == "datum" and not subject.reads_tokens:
        return [[i, i + count // 2] for i in range(count // 2)]
    return [list(range(i, i + step)) for i in range(0, count, step)]


@st.composite
def _with_cuts(draw: Any, subject: Subject) -> dict[str, Any]:
    example = draw(protocol.batches(subject, min_units=2))
    last = boundaries(subject, example["data"])
    return {**example, "cuts": sorted(draw(st.sets(st.integers(1, last), min_size=1, max_size=4)))}


@st.composite
def _with_ranks(draw: Any, subject: Subject) -> dict[str, Any]:
    example = draw(protocol.batches(subject))
    count = len(subject.units(example["data"]))
    return {**example, "ranks": draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))}


@st.composite
def _with_places(draw: Any, subject: Subject) -> dict[str, Any]:
    example = draw(protocol.batches(subject, min_units=2))
    count = len(_movable(subject, len(example["data"])))
    return {**example, "places": draw(st.permutations(range(count)))}


def _skip_coupled(subject: Subject) -> str:
    return "it couples the whole batch, so there is nothing to cut" if subject.couples == "batch" else ""


def _skip_batch_style(subject: Subject) -> str:
    return "fn(data, logprobs_list) may give a meaning to the order of datums" if subject.is_batch_style else ""


CHECKS = (
    Check("law_micro_batches", law_micro_batches, _with_cuts, _skip_coupled),
    Check("law_ranks", law_ranks, _with_ranks, _skip_coupled),
    Check("order", order, _with_places, _skip_batch_style),
)
METRICS_LAW = Check("metrics_law", metrics_law, protocol.ordinary)
