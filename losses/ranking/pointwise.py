"""Ranking losses that look at one candidate at a time."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from .. import stats
from ..batch.seqs import Seqs
from ..registry import register_loss
from ..spec.settings import Positive
from ..spec.spec import PerDatum
from .common import Activation, Returned, activated, labels_between


@register_loss(
    "rank_bce",
    per="datum",
    reduction="mean",
    source="Nogueira & Cho 2019, arXiv:1901.04085 section 2",
    groups=labels_between("rank_bce", 0, 1, "it is a probability, from 0 to 1. Divide grades by the highest"),
    differs={
        "Sentence Transformers 6.2.0": "BinaryCrossEntropyLoss: offers an activation of the score before the logistic"
    },
)
def rank_bce(values: Tensor, label: PerDatum, seqs: Seqs, *, positive_weight: Positive = 1.0) -> Returned:
    """-(w y log σ(s) + (1 - y) log σ(-s)): the log loss of a candidate's relevance.

    values    [T]  nats, of the scalar head; a candidate's score s is the value at its last token of non-zero weight
    label     [N]  unitless, from 0 to 1: the probability that the candidate is relevant
    returns   [N]  nats, one loss per candidate; ln 2 at score 0 and w = 1

    w is positive_weight: the number of irrelevant candidates per relevant one balances the two. σ(s) is a calibrated
    probability where w = 1. Datums need no `group`. `right_side` is the share of candidates on the right side of score 0.
    Raises LabelError for labels outside [0, 1].

    When to use: Pairs of query and document marked relevant or not, when a threshold on the score is wanted. Watch
    positive_score and negative_score part.
    """
    scores = seqs.last(values)
    wanted = label.to(scores)
    weight = scores.new_full((), positive_weight)
    losses = binary_cross_entropy_with_logits(scores, wanted, pos_weight=weight, reduction="none")
    is_positive = wanted > 0.5
    return losses, {
        "right_side": stats.mean((scores > 0) == is_positive),
        "positive_score": stats.mean(scores, is_positive),
        "negative_score": stats.mean(scores, ~is_positive),
    }


@register_loss(
    "rank_mse",
    per="datum",
    reduction="mean",
    source="Hofstätter et al. 2020, arXiv:2010.02666 section 3, pointwise",
)
def rank_mse(values: Tensor, label: PerDatum, seqs: Seqs, *, activation: Activation = "none") -> Returned:
    """(s - y)²: give each candidate the score that it has, such as another reranker's.

    values    [T]  unitless, of the scalar head; a candidate's score s is the value at its last token of non-zero weight
    label     [N]  unitless, the wanted score
    returns   [N]  unitless, one loss per candidate

    activation "sigmoid" compares σ(s), for wanted scores from 0 to 1. Datums need no `group`. `error` is the mean of s - y.

    When to use: To copy a larger reranker whose scores themselves matter. If only their order does, rank_margin_mse or
    listnet leaves the student more freedom.
    """
    error = activated(seqs.last(values), activation) - label
    return error.square(), {"error": stats.mean(error), "absolute_error": stats.mean(error.abs())}
