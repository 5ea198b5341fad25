"""Reward models: a score per response, learned from preference pairs."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from .. import stats
from ..batch.seqs import Seqs
from ..registry import register_loss
from ..spec.settings import NonNegative
from ..spec.spec import PerDatum
from .common import Returned, pair_stats


@register_loss(
    "reward_bt",
    per="pair",
    reduction="pair-mean",
    source="Bradley & Terry 1952; margin: Touvron et al. 2023, arXiv:2307.09288 eq. 2; centring: Eisenstein et al. 2023, "
    "arXiv:2312.09244",
    aliases=["bradley_terry"],
    differs={"TRL 1.16.0": "reads the score at the last token that is no padding, whatever its weight"},
    laws={"swap_symmetry": {}},
)
def reward_bt(
    values: Tensor, seqs: Seqs, margin: PerDatum | None = None, *, center_coefficient: NonNegative = 0.0
) -> Returned:
    """-log σ(r_chosen - r_rejected - margin) + center_coefficient (r_chosen + r_rejected)².

    values    [T]    nats, of the scalar head; a response's score r is the value at its last token of non-zero weight
    margin    [N]    nats, optional: the wanted lead of the chosen score; a pair uses its chosen datum's
    returns   [N/2]  nats, one loss per pair; ln 2 where both score the same and there is no margin

    Only differences of scores matter, unless center_coefficient (0.01 in the literature) pulls the mean of a pair's scores to
    0. `score_min` and `score_max` show the range of scores.

    When to use: To train a reward model on pairs, for policy optimisation or for choosing among samples.
    """
    scores = seqs.last(values)
    chosen, rejected = seqs.pairs(scores)
    lead = chosen - rejected if margin is None else chosen - rejected - seqs.pairs(margin)[0]
    losses = -logsigmoid(lead) + center_coefficient * (chosen + rejected).square()
    return losses, {**pair_stats(chosen, rejected), "score_min": stats.min(scores), "score_max": stats.max(scores)}
