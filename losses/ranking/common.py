"""Shared by ranking losses: checks of labels, ranks, and how well a list is ordered.

A datum's score is the value at its last token of non-zero weight. Lists are [G, M], a row for each group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ...datums.errors import LabelError
from .. import stats
from ..batch.groups import DatumGroups
from ..spec.spec import Grouping, Groups
from ..stats import Stat

#: What is done to a score before it is compared.
Activation = Literal["none", "sigmoid"]
Returned = tuple[Tensor, dict[str, Stat]]
#: The highest grade of relevance: a gain is 2 to the grade, less 1.
HIGHEST_GRADE = 60


def labels_between(name: str, low: float, high: float, hint: str) -> Groups:
    """`groups` of a loss whose labels lie in [low, high]. Raises LabelError with `hint` for any other."""

    def groups(datums: int, config: Any, inputs: Mapping[str, Tensor | None] | None) -> Grouping:
        label = None if inputs is None else inputs.get("label")
        if label is not None and bool((wrong := (label < low) | (label > high)).any()):
            raise LabelError(f"{name}: a label is {float(label[wrong][0]):g}: {hint}")
        return Grouping()

    return groups


def activated(scores: Tensor, activation: Activation) -> Tensor:
    """Scores as they are compared."""
    return scores.sigmoid() if activation == "sigmoid" else scores


def gains(label: Tensor) -> Tensor:
    """2^grade - 1; a negative label has no gain."""
    return torch.exp2(label.clamp(0, HIGHEST_GRADE)) - 1


def ideal_gain(label: Tensor, k: int | None = None) -> Tensor:
    """[G] from lists [G, M]: the discounted gain of the first k places (None: of all) when the highest labels come first.

    Padded places hold labels of at most 0.
    """
    best = gains(label.sort(dim=1, descending=True).values)[:, :k]
    places = torch.arange(1, best.shape[1] + 1, device=best.device)
    return (best / discount(places.to(best))).sum(1)


def discount(ranks: Tensor) -> Tensor:
    """log2(1 + rank): what a gain at this rank is divided by."""
    return torch.log2(1 + ranks)


def mean_ranks(scores: Tensor, mask: Tensor) -> Tensor:
    """[G, M]: 1 for the highest score of each list; equal scores share the mean of their ranks. mask: where a list has a datum."""
    others = mask[:, None, :] & mask[:, :, None]
    above = (scores[:, None, :] > scores[:, :, None]) & others
    level = (scores[:, None, :] == scores[:, :, None]) & others
    return above.sum(2) + (level.sum(2) + 1) / 2


def list_stats(scores: Tensor, label: Tensor, groups: DatumGroups) -> dict[str, Stat]:
    """How well the lists are ordered; among equal scores the worse candidate comes first.

    `ndcg`: mean normalised discounted gain of lists with a label above 0. `top_1`: share of lists, of those whose labels
    differ, whose first candidate has the highest label. `score_deviation`: root mean square of scores about their list's mean.
    """
    scores, label = scores.detach(), label.to(scores)
    mask, s, y = groups.mask, groups.lists(scores, 0), groups.lists(label, 0)
    pairs = mask[:, None, :] & mask[:, :, None]
    column = torch.arange(groups.width, device=s.device)
    same = s[:, None, :] == s[:, :, None]
    before = (s[:, None, :] > s[:, :, None]) | (same & (y[:, None, :] < y[:, :, None]))
    before |= same & (y[:, None, :] == y[:, :, None]) & (column[None, None, :] < column[None, :, None])
    ranks = 1 + (before & pairs).sum(2)
    best = ideal_gain(y)
    gained = torch.where(mask, gains(y) / discount(ranks.to(s)), 0).sum(1)
    highest, lowest = groups.max(label), -groups.max(-label)
    is_first = ((ranks == 1) & mask & (y == highest[:, None])).any(1)
    apart = scores - groups.broadcast(groups.mean(scores))
    return {
        "ndcg": stats.mean(gained / torch.where(best > 0, best, 1), best > 0),
        "top_1": stats.mean(is_first, highest > lowest),
        "score_deviation": stats.mean(groups.mean(apart.square()).sqrt()),
    }
