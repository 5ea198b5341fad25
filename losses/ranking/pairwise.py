"""Ranking losses over pairs of a query's candidates."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Optional

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn.functional import softplus

from .. import stats
from ..batch.seqs import Seqs
from ..registry import register_loss
from ..spec.settings import NonNegative, Positive
from ..spec.spec import FlagPerDatum, PerDatum
from .common import HIGHEST_GRADE, Returned, discount, gains, ideal_gain, labels_between, list_stats, mean_ranks

LogBase = Literal["binary", "natural"]
Weighting = Literal["none", "ndcg1", "ndcg2", "lambda_rank", "ndcg2_plus"]
Cutoff = Optional[Annotated[int, Ge(1)]]  # noqa: UP045 - pydantic reads it

PAIRS_OF_A_BATCH = (
    "divides by the number of compared pairs in the batch, which depends on the scores where k is given; here a list's pairs are "
    "added up and lists averaged. Equal scores rank in the order of the data there, and share a rank here"
)


@register_loss(
    "rank_margin_mse",
    per="group",
    source="Hofstätter et al. 2020, arXiv:2010.02666 eq. 3",
    differs={
        "Sentence Transformers 6.2.0": "MarginMSELoss: one positive per query, the labels also as differences of scores"
    },
    laws={"shift_invariance": {}},
)
def rank_margin_mse(values: Tensor, label: PerDatum, is_positive: FlagPerDatum, seqs: Seqs) -> Returned:
    """((s_p - s_n) - (y_p - y_n))², averaged over a query's pairs of a positive p and a negative n.

    values        [T]  unitless, of the scalar head; a candidate's score s is the value at its last token of non-zero weight
    label         [N]  unitless, a teacher's scores y
    is_positive   [N]  0 or 1: whether the candidate is a positive of its group
    returns       [G]  unitless, one loss per group; 0 for a group without a positive or without a negative

    Only differences of scores matter, so the student's range is free. Datums of one query carry the same integer `group`.
    `margin` is the mean of s_p - s_n, `teacher_margin` the teacher's; `without_pairs` counts groups without a pair.

    When to use: To copy a larger reranker. Watch margin approach teacher_margin.
    """
    groups, scores = seqs.groups, seqs.last(values)
    error = scores - label
    positive = is_positive.to(scores)
    ahead, behind = groups.sum(positive), groups.sum(1 - positive)
    # the mean over all pairs of (e_p - e_n)², from sums: of squares, and of the errors themselves
    mean_of = [groups.sum(w * error) / n.clamp(min=1) for w, n in ((positive, ahead), (1 - positive, behind))]
    about = [
        groups.sum(w * (error - groups.broadcast(mean)).square()) / n.clamp(min=1)
        for w, n, mean in zip((positive, 1 - positive), (ahead, behind), mean_of, strict=True)
    ]
    has_pairs = (ahead > 0) & (behind > 0)
    losses = torch.where(has_pairs, about[0] + about[1] + (mean_of[0] - mean_of[1]).square(), 0)
    margins = [
        groups.sum(positive * x) / ahead.clamp(min=1) - groups.sum((1 - positive) * x) / behind.clamp(min=1)
        for x in (scores, label.to(scores))
    ]
    return losses, {
        "margin": stats.mean(margins[0], has_pairs),
        "teacher_margin": stats.mean(margins[1], has_pairs),
        "without_pairs": stats.sum(~has_pairs),
    }


@register_loss(
    "ranknet",
    per="group",
    source="Burges et al. 2005, RankNet, doi:10.1145/1102351.1102363 eq. 3",
    differs={"Sentence Transformers 6.2.0": f"RankNetLoss: {PAIRS_OF_A_BATCH}"},
    laws={"shift_invariance": {}, "right_order_is_cheapest": {}},
)
def ranknet(
    values: Tensor,
    label: PerDatum,
    seqs: Seqs,
    *,
    sigma: Positive = 1.0,
    k: Cutoff = None,
    log_base: LogBase = "binary",
) -> Returned:
    """Σ log(1 + exp(-sigma (s_i - s_j))) over a query's pairs of candidates with y_i > y_j.

    values    [T]  nats, of the scalar head; a candidate's score s is the value at its last token of non-zero weight
    label     [N]  unitless: only its order matters
    returns   [G]  bits, or nats with log_base "natural", one loss per group; a pair of equal scores costs 1 bit

    k keeps the pairs of which a candidate is now among the k highest scores. Datums of one query carry the same integer
    `group`. Longer lists have more pairs and cost more. `pairs` is the mean number of them per group.

    When to use: Candidates with labels of any scale, when every wrong pair counts alike. Watch ndcg.
    """
    return _weighted_pairs(values, label, seqs, "none", sigma, 0.0, k, log_base)


@register_loss(
    "lambda_loss",
    per="group",
    source="Wang et al. 2018, LambdaLoss, doi:10.1145/3269206.3271784 eq. 10 to 13; lambda_rank: Burges et al. 2006",
    groups=labels_between(
        "lambda_loss",
        -torch.inf,
        HIGHEST_GRADE,
        f"a gain is 2 to the label, so it is a grade of at most {HIGHEST_GRADE}",
    ),
    differs={"Sentence Transformers 6.2.0": f"LambdaLoss: {PAIRS_OF_A_BATCH}"},
    laws={"shift_invariance": {}, "right_order_is_cheapest": {"than": "reversed"}},
)
def lambda_loss(
    values: Tensor,
    label: PerDatum,
    seqs: Seqs,
    *,
    weighting: Weighting = "ndcg2_plus",
    sigma: Positive = 1.0,
    mu: NonNegative = 10.0,
    k: Cutoff = None,
    log_base: LogBase = "binary",
) -> Returned:
    """Σ w_ij log(1 + exp(-sigma (s_i - s_j))) over a query's pairs with y_i > y_j, w_ij by the change of NDCG at stake.

    values    [T]  nats, of the scalar head; a candidate's score s is the value at its last token of non-zero weight
    label     [N]  unitless, a grade; its gain is G = (2^y - 1) / the best discounted gain of its list
    returns   [G]  bits, or nats with log_base "natural", one loss per group

    With D = log2(1 + rank), the rank by the scores as they are now, and no gradient through it, `weighting` is
      lambda_rank   |1/D_i - 1/D_j| |G_i - G_j|: what exchanging the two changes
      ndcg2         |1/log2(1 + d) - 1/log2(2 + d)| |G_i - G_j|, d = |rank_i - rank_j|: a tighter bound on NDCG
      ndcg2_plus    mu times ndcg2, plus lambda_rank
      ndcg1         G_i / D_i, over all pairs whatever their labels, a candidate with itself included
      none          1, as ranknet
    Equal scores share the mean of their ranks and count as one rank apart. k keeps the pairs of which a candidate is among
    the k highest scores, and normalises by the best k. mu is read by ndcg2_plus only. A list without a label above 0 has
    weight 0. Datums of one query carry the same integer `group`. Raises LabelError for labels above 60.

    When to use: Graded labels, or several relevant candidates, when NDCG is the measure. Watch ndcg.
    """
    return _weighted_pairs(values, label, seqs, weighting, sigma, mu, k, log_base)


def _weighted_pairs(
    values: Tensor,
    label: Tensor,
    seqs: Seqs,
    weighting: Weighting,
    sigma: float,
    mu: float,
    k: int | None,
    log_base: LogBase,
) -> Returned:
    groups, scores = seqs.groups, seqs.last(values)
    mask, s, y = groups.mask, groups.lists(scores, 0), groups.lists(label.to(scores), 0)
    compared = mask[:, None, :] & mask[:, :, None]
    if weighting != "ndcg1":
        compared = compared & (y[:, :, None] > y[:, None, :])
    ranks = mean_ranks(s.detach(), mask).to(s)
    if k is not None:
        compared = compared & ((ranks <= k)[:, :, None] | (ranks <= k)[:, None, :])
    cost = softplus(-sigma * (s[:, :, None] - s[:, None, :])) / (math.log(2) if log_base == "binary" else 1)
    weight = pair_weights(ranks, y, weighting, mu, k)
    losses = torch.where(compared, weight * cost, 0).sum((1, 2))
    return losses, {**list_stats(scores, label, groups), "pairs": stats.mean(compared.sum((1, 2)))}


def pair_weights(ranks: Tensor, label: Tensor, weighting: Weighting, mu: float, k: int | None) -> Tensor:
    """[G, M, M], or [G, M, 1]: lambda_loss's w_ij of lists [G, M] by their ranks now."""
    if weighting == "none":
        return torch.ones_like(label)[:, :, None]
    best = ideal_gain(label, k)
    gain = gains(label) / torch.where(best > 0, best, 1)[:, None]
    by_rank = 1 / discount(ranks)
    if weighting == "ndcg1":
        return (gain * by_rank)[:, :, None]
    at_stake = (gain[:, :, None] - gain[:, None, :]).abs()
    exchanged = (by_rank[:, :, None] - by_rank[:, None, :]).abs() * at_stake
    if weighting == "lambda_rank":
        return exchanged
    apart = (ranks[:, :, None] - ranks[:, None, :]).abs().clamp(min=1)
    nearer = (1 / discount(apart) - 1 / discount(apart + 1)).abs() * at_stake
    return nearer if weighting == "ndcg2" else mu * nearer + exchanged
