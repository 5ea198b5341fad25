"""Laws of ranking losses: what only differences of scores decide, and the order that costs least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from ....datums.errors import LossCheckError
from ....datums.types import Datum
from ...batch.groups import group_ids
from ...registry import get_loss
from ..checks import batches, family_law
from ..evaluation import evaluate, same, shown
from ..loss_under_test import LossUnderTest, OutputLists
from .masking import weighted


def shift_invariance(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, shifts: Sequence[float]) -> None:
    """Adding the same number to all scores of a group changes neither loss nor gradient. `{"own": {...}}`: its settings for it."""
    own = loss.laws["shift_invariance"].get("own")
    here = replace(loss, wrapped=get_loss(loss.wrapped, **own)) if own else loss
    by_group = dict(zip(dict.fromkeys(group_ids(data)), shifts, strict=False))
    moved = [t + by_group[group] for t, group in zip(outputs["values"], group_ids(data), strict=True)]
    whole, other = evaluate(here, data, outputs), evaluate(here, data, {**outputs, "values": moved})
    same(replace(whole, metrics={}), replace(other, metrics={}), f"when {by_group} was added to the scores of groups")


def right_order_is_cheapest(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """The scores of a group, dealt out in the order of its labels, cost no more than as they are.

    `{"than": "reversed"}`: no more than in the reverse order, which is all that holds.
    """
    scores = [_last(d, t) for d, t in zip(data, outputs["values"], strict=True)]
    given = scores
    if loss.laws["right_order_is_cheapest"].get("than") == "reversed":
        given = _dealt(data, scores, -1)
    right = _dealt(data, scores, 1)
    as_it_is, best = (evaluate(loss, data, {"values": _constant(data, one)}).total for one in (given, right))
    if float(best) > float(as_it_is) + 1e-9 * max(1.0, abs(float(as_it_is))):
        raise LossCheckError(f"scores in the order of the labels cost {shown(best)}, others {shown(as_it_is)}")


def _last(datum: Datum, values: Tensor) -> float:
    weights = datum.loss_fn_inputs["weights"].to_numpy().reshape(-1)
    return float(values[int(np.flatnonzero(weights)[-1])]) if weights.any() else 0.0


def _dealt(data: Sequence[Datum], scores: Sequence[float], direction: int) -> list[float]:
    """Each group's scores, the highest to the highest label (direction 1) or to the lowest (-1)."""
    dealt = list(scores)
    ids, labels = group_ids(data), [float(d.loss_fn_inputs["label"].to_numpy().reshape(-1)[0]) for d in data]
    counts = [bool(d.loss_fn_inputs["weights"].to_numpy().any()) for d in data]
    for group in dict.fromkeys(ids):
        members = [i for i, own in enumerate(ids) if own == group and counts[i]]
        places = sorted(members, key=lambda i: direction * labels[i])
        for place, score in zip(places, sorted(scores[i] for i in members), strict=True):
            dealt[place] = score
    return dealt


def _constant(data: Sequence[Datum], scores: Sequence[float]) -> list[Tensor]:
    sizes = [d.loss_fn_inputs["target_tokens"].shape[0] for d in data]
    return [torch.full((n,), score, dtype=torch.float64) for n, score in zip(sizes, scores, strict=True)]


@st.composite
def _with_shifts(draw: Any, loss: LossUnderTest) -> dict[str, Any]:
    example = draw(batches(loss))
    count = len(set(group_ids(example["data"])))
    return {**example, "shifts": draw(st.lists(st.sampled_from((0.5, -2.0, 8.0)), min_size=count, max_size=count))}


CHECKS = (family_law(shift_invariance, _with_shifts), family_law(right_order_is_cheapest, weighted))
