"""Rewards as labels: a prompt's right and wrong responses told apart by how far the policy has moved towards each."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import stats
from ..batch.groups import DatumGroups
from ..batch.seqs import Seqs
from ..math.ratios import ratio_stats
from ..registry import register_loss
from ..spec.axes import Axes
from ..spec.settings import Positive
from ..stats import Stat


@register_loss(
    "real",
    per="group",
    reduction="group-mean",
    source="Zhai et al. 2026, arXiv:2602.05630; groups of one kind count 0 as in ms-swift's loss_type 'real'",
    axes=Axes(ratio="sequence", clip="none: weights that level off, since each side's sum is held against 1"),
    differs={"ms-swift 4.6.0": "takes groups by their place in the batch, of num_generations responses each"},
    laws={"zero_advantage_is_silent": {}},
)
def real(
    logprobs: Tensor, sampling_logprobs: Tensor, advantages: Tensor, seqs: Seqs, *, temperature: Positive = 0.5
) -> tuple[Tensor, dict[str, Stat]]:
    """log(1 + Σ_wrong exp(s / temperature)) + log(1 + Σ_right exp(-s / temperature)) over a prompt's responses, where s = mean of logprobs - sampling_logprobs.

    advantages   [T]  unitless, one for the whole response: right where their mean is above 0, wrong elsewhere; only the
                      sign is read
    group        [N]  unitless, an integer: the same for the responses to one prompt
    returns      [G]  nats, one loss per group; 0 for a group without both kinds

    The gradient with respect to s is at most 1 / temperature, whatever the number of responses: a right response far behind
    counts in full, one far ahead hardly. Means are weighted by the tokens' weights. `right_score` and `wrong_score` are the
    means of s, nats per token; `one_sided` is the share of groups that are all right or all wrong.

    When to use: As grpo, with rewards that are right or wrong, when updates are dominated by a few responses. Watch
    `right_score` less `wrong_score`: it rises within the steps on one batch.
    """
    score = seqs.mean(logprobs - sampling_logprobs)
    is_right = seqs.mean(advantages) > 0
    groups, scaled = seqs.groups, score / temperature
    right = groups.max(is_right.to(scaled)) > 0
    wrong = groups.max((~is_right).to(scaled)) > 0
    losses = _log_one_plus(groups, scaled, ~is_right) + _log_one_plus(groups, -scaled, is_right)
    metrics = {
        "right_score": stats.mean(score, is_right),
        "wrong_score": stats.mean(score, ~is_right),
        "one_sided": stats.mean(~(right & wrong)),
        **ratio_stats(logprobs, sampling_logprobs),
    }
    return torch.where(right & wrong, losses, torch.zeros_like(losses)), metrics


def _log_one_plus(groups: DatumGroups, values: Tensor, chosen: Tensor) -> Tensor:
    """[G]: log(1 + Σ exp(values)) over the chosen datums of each group."""
    exponents = groups.lists(torch.where(chosen, values, -torch.inf), -torch.inf)
    return torch.cat([exponents, exponents.new_zeros(groups.count, 1)], 1).logsumexp(1)
