"""Ranking losses over a whole list: the candidates of one query against each other."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import stats
from ..batch.seqs import Seqs
from ..registry import register_loss
from ..spec.settings import Positive
from ..spec.spec import FlagPerDatum, PerDatum
from .common import Activation, Returned, activated, discount, labels_between, list_stats, mean_ranks

LAWS = {"shift_invariance": {}, "right_order_is_cheapest": {}}


@register_loss(
    "rank_softmax",
    per="group",
    source="Gao, Dai & Callan 2021, arXiv:2101.08751 eq. 3 (localized contrastive estimation)",
    groups=labels_between("rank_softmax", 0, float("inf"), "a share of a list is not negative"),
    differs={
        "Sentence Transformers 6.2.0": "CrossEntropyLoss: over the K numbers of a head per pair; here K candidates are a group"
    },
    laws=LAWS,
)
def rank_softmax(values: Tensor, label: PerDatum, seqs: Seqs, *, scale: Positive = 1.0) -> Returned:
    """-Σ_i y_i / Σ_j y_j · log softmax(scale s)_i over the candidates of a query: pick the relevant one.

    values    [T]  nats, of the scalar head; a candidate's score s is the value at its last token of non-zero weight
    label     [N]  unitless, at least 0: 1 for the relevant candidate of each group, 0 for the others; or shares
    returns   [G]  nats, one loss per group; ln M for M equal scores

    Datums of one query carry the same integer `group`. A group without a label above 0 has loss 0 and no gradient:
    `without_positive` counts them. Several relevant candidates share the probability. Raises LabelError for negative labels.

    When to use: One relevant document per query with hard negatives from a retriever, the usual way to train a reranker.
    Watch ndcg and top_1.
    """
    groups, scores = seqs.groups, seqs.last(values)
    wanted = label.to(scores)
    total = groups.sum(wanted)
    share = wanted / groups.broadcast(torch.where(total > 0, total, 1))
    losses = -groups.sum(share * groups.log_softmax(scale * scores))
    return losses, {**list_stats(scores, label, groups), "without_positive": stats.sum(total == 0)}


@register_loss(
    "rank_mnrl",
    per="group",
    source="Henderson et al. 2017, arXiv:1705.00652 section 4, over scores of a cross-encoder",
    differs={
        "Sentence Transformers 6.2.0": "MultipleNegativesRankingLoss draws negatives from the batch, and its cached form keeps "
        "no graph of them; here the data name a query's candidates, and micro-batches keep its group together"
    },
    laws={"shift_invariance": {"own": {"activation": "none"}}, "right_order_is_cheapest": {}},
)
def rank_mnrl(
    values: Tensor, label: FlagPerDatum, seqs: Seqs, *, scale: Positive = 10.0, activation: Activation = "sigmoid"
) -> Returned:
    """-log e^{z_i} / (e^{z_i} + Σ_j e^{z_j}) over the negatives j of a query, where z = scale σ(s), averaged over its positives i.

    values    [T]  nats, of the scalar head; a candidate's score s is the value at its last token of non-zero weight
    label     [N]  0 or 1: whether the candidate is a positive of its group
    returns   [G]  nats, one loss per group

    Datums of one query carry the same integer `group`. Positives are no negatives of each other. σ bounds the scores, so the
    loss never falls below log(1 + n exp(-scale)) for n negatives; activation "none" leaves scores as they are. A group
    without positive has loss 0: `without_positive` counts them.

    When to use: Pairs of query and answer without labels, other queries' answers as negatives. Watch ndcg and top_1.
    """
    groups, scores = seqs.groups, seqs.last(values)
    z, is_positive = scale * activated(scores, activation), label.bool()
    negatives = groups.broadcast(groups.logsumexp(torch.where(is_positive, NOTHING, z)))
    each = torch.where(is_positive, torch.logaddexp(z, negatives) - z, 0)
    positives = groups.sum(is_positive.to(z))
    return groups.sum(each) / positives.clamp(min=1), {
        **list_stats(scores, label, groups),
        "without_positive": stats.sum(positives == 0),
    }


@register_loss("listnet", per="group", source="Cao et al. 2007, ListNet, doi:10.1145/1273496.1273513 eq. 4", laws=LAWS)
def listnet(values: Tensor, label: PerDatum, seqs: Seqs) -> Returned:
    """-Σ_i softmax(y)_i log softmax(s)_i: the chance of being ranked first, as the labels have it and as the scores do.

    values    [T]  nats, of the scalar head; a candidate's score s is the value at its last token of non-zero weight
    label     [N]  nats: how relevant a candidate is; one that has 1 more is e times as likely to come first
    returns   [G]  nats, one loss per group; at least the entropy of softmax(y)

    Datums of one query carry the same integer `group`. Grades 0 and 1 make a soft target: multiply labels to sharpen it.

    When to use: Graded labels, or a teacher's scores, for all candidates of a query. Watch ndcg.
    """
    groups, scores = seqs.groups, seqs.last(values)
    target = groups.log_softmax(label.to(scores)).exp()
    return -groups.sum(target * groups.log_softmax(scores)), list_stats(scores, label, groups)


@register_loss(
    "list_mle",
    per="group",
    source="Xia et al. 2008, ListMLE, doi:10.1145/1390156.1390306 eq. 8; ties: Breslow 1974, doi:10.2307/2529620",
    differs={
        "Sentence Transformers 6.2.0": "ListMLELoss: equal labels stand in the order of the data; its default takes the documents' "
        "order as the right one, whatever their labels"
    },
    laws=LAWS,
)
def list_mle(values: Tensor, label: PerDatum, seqs: Seqs) -> Returned:
    """Σ_i (log Σ_{j: y_j <= y_i} exp(s_j) - s_i): minus the log-likelihood of the labels' order, best candidate drawn first.

    values    [T]  nats, of the scalar head; a candidate's score s is the value at its last token of non-zero weight
    label     [N]  unitless: only its order matters
    returns   [G]  nats, one loss per group; log M! for M equal scores and different labels

    Datums of one query carry the same integer `group`. Candidates with equal labels are drawn from the same rest, so their
    order in the data changes nothing. A longer list costs more.

    When to use: A whole order of candidates, such as a teacher's ranking. With labels 0 and 1 take rank_softmax: here
    irrelevant candidates are pulled towards each other. Watch ndcg.
    """
    groups, scores = seqs.groups, seqs.last(values)
    return groups.sum(_surprise(scores, label, seqs)), list_stats(scores, label, groups)


@register_loss(
    "plist_mle",
    per="group",
    source="Lan et al. 2014, Position-Aware ListMLE, UAI 2014 eq. 5 with alpha(i) = 2^(n-i) - 1",
    differs={
        "Sentence Transformers 6.2.0": "PListMLELoss: equal labels stand in the order of the data; its default takes the documents' "
        "order as the right one, whatever their labels"
    },
    laws=LAWS,
)
def plist_mle(values: Tensor, label: PerDatum, seqs: Seqs) -> Returned:
    """Σ_i w_i (log Σ_{j: y_j <= y_i} exp(s_j) - s_i), w_i = (2^{n - i} - 1) / Σ_k (2^{n - k} - 1) for place i of n in the labels' order.

    values    [T]  nats, of the scalar head; a candidate's score s is the value at its last token of non-zero weight
    label     [N]  unitless: only its order matters
    returns   [G]  nats, one loss per group; 0 for a group of one

    list_mle with half the loss, about, on the first place, a quarter on the second, and so on. Candidates with equal labels
    share the mean weight of their places. Datums of one query carry the same integer `group`.

    When to use: As list_mle, when the top of the list is what counts. Watch ndcg.
    """
    groups, scores = seqs.groups, seqs.last(values)
    weight = groups.flat(_place_weights(groups.lists(label.to(scores), 0), groups.mask))
    return groups.sum(weight * _surprise(scores, label, seqs)), list_stats(scores, label, groups)


@register_loss(
    "adr_mse",
    per="datum",
    couples="group",
    reduction="mean",
    source="Schlatt et al. 2025, Rank-DistiLLM, arXiv:2405.07920 eq. 2",
    laws={"shift_invariance": {}, "right_order_is_cheapest": {"than": "reversed"}},
)
def adr_mse(values: Tensor, label: PerDatum, seqs: Seqs, *, alpha: Positive = 1.0) -> Returned:
    """(r_i - q_i)² / log2(1 + r_i), where r is a candidate's rank by label and q_i = 1 + Σ_{j≠i} σ(alpha (s_j - s_i)).

    values    [T]  nats, of the scalar head; a candidate's score s is the value at its last token of non-zero weight
    label     [N]  unitless: only its order matters; equal labels share the mean of their ranks
    returns   [N]  squared ranks, one loss per candidate

    q is a smooth rank: a larger alpha brings it nearer to the rank itself, and its gradient nearer to 0. Datums of one query
    carry the same integer `group`. `rank_error` is the mean of |r - q|.

    When to use: To copy the ranking of a listwise reranker, such as a large language model. Watch rank_error and ndcg.
    """
    groups, scores = seqs.groups, seqs.last(values)
    mask, s = groups.mask, groups.lists(scores, 0)
    above = torch.where(mask[:, None, :], (alpha * (s[:, None, :] - s[:, :, None])).sigmoid(), 0)
    smooth = groups.flat(above.sum(2) + 0.5)  # a candidate is counted against itself, with σ(0)
    rank = groups.flat(mean_ranks(groups.lists(label.to(scores), 0), mask).to(s))
    losses = (rank - smooth).square() / discount(rank)
    return losses, {**list_stats(scores, label, groups), "rank_error": stats.mean((rank - smooth).abs())}


#: A score that no candidate has, where there is no negative: exp of it is 0, and so is its gradient.
NOTHING = -torch.inf


def _surprise(scores: Tensor, label: Tensor, seqs: Seqs) -> Tensor:
    """[N]: log Σ exp(scores) over the candidates of the group with a label of at most the candidate's own, less its score."""
    groups = seqs.groups
    s, y, mask = groups.lists(scores, 0), groups.lists(label.to(scores), 0), groups.mask
    rest = (y[:, None, :] <= y[:, :, None]) & mask[:, None, :]
    rest |= ~mask[:, :, None]  # padding is drawn from something, so that its log is finite
    return groups.flat(s[:, None, :].masked_fill(~rest, NOTHING).logsumexp(2)) - scores


def _place_weights(label: Tensor, mask: Tensor) -> Tensor:
    """[G, M]: plist_mle's weights of lists. All are divided by 2^n, so that none overflows."""
    others = mask[:, None, :] & mask[:, :, None]
    before = ((label[:, None, :] > label[:, :, None]) & others).sum(2)
    level = ((label[:, None, :] == label[:, :, None]) & others).sum(2).clamp(min=1)
    size = mask.sum(1, keepdim=True)
    of_places = torch.exp2(-before.to(label)) * (1 - torch.exp2(-level.to(label))) / level
    weight = torch.where(mask, of_places - torch.exp2(-size.to(label)), 0)
    total = weight.sum(1, keepdim=True)
    return weight / torch.where(total > 0, total, 1)
