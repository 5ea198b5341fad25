"""Losses that give each response of a pair its own target, not only a target for their difference."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..batch.seqs import Seqs
from ..registry import register_loss
from ..spec.settings import Positive
from .common import AXES, Returned, log_ratios, pair_stats


@register_loss(
    "bco_pair",
    per="pair",
    reduction="pair-mean",
    source="Jung et al. 2024, arXiv:2404.04656, without its moving reward shift",
    axes=AXES,
    laws={
        "value_at_reference": {"value": 2 * math.log(2)},
        "swap_symmetry": {"slope": lambda beta: beta},
        "agreeing_tokens_are_silent": {},
    },
)
def bco_pair(logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1) -> Returned:
    """-log σ(beta c) - log σ(-beta j), where c, j = Σ (logprobs - ref_logprobs) of the chosen and the rejected response.

    returns   [N/2]  nats, one loss per pair; 2 ln 2 while policy and reference agree

    A classifier of each response: the chosen one should rise above the reference, the rejected one fall below it. Unlike in
    DPO, a falling `chosen_reward` raises the loss even while `accuracy` rises.

    When to use: Pairs from which each answer should be judged by itself, as a classifier does.
    """
    chosen, rejected = log_ratios(logprobs, ref_logprobs, seqs)
    return -logsigmoid(beta * chosen) - logsigmoid(-beta * rejected), pair_stats(chosen, rejected, beta)


@register_loss(
    "nca_pair",
    per="pair",
    reduction="pair-mean",
    source="H. Chen et al. 2024, arXiv:2402.05369, for two responses",
    axes=AXES,
    laws={
        "value_at_reference": {"value": 2 * math.log(2)},
        "swap_symmetry": {},
        "agreeing_tokens_are_silent": {},
    },
)
def nca_pair(logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1) -> Returned:
    """-log σ(beta c) - ½ log σ(-beta c) - ½ log σ(-beta j), where c, j = Σ (logprobs - ref_logprobs) of the chosen and the rejected response.

    returns   [N/2]  nats, one loss per pair; 2 ln 2 while policy and reference agree

    The chosen response c is pulled to σ(beta c) = 2/3; the rejected one j is pushed down. Watch `chosen_reward`: it goes to
    ln 2.

    When to use: Pairs whose chosen answers must not become less likely, which dpo may let happen.
    """
    chosen, rejected = log_ratios(logprobs, ref_logprobs, seqs)
    noise = -0.5 * (logsigmoid(-beta * chosen) + logsigmoid(-beta * rejected))
    return noise - logsigmoid(beta * chosen), pair_stats(chosen, rejected, beta)


@register_loss(
    "sppo_hard",
    per="pair",
    reduction="pair-mean",
    source="Wu et al. 2024, arXiv:2405.00675 eq. 4.7, with win probabilities 1 and 0",
    axes=AXES,
    laws={
        "value_at_reference": {"value": lambda beta: 0.5 / beta**2},
        "swap_symmetry": {"slope": lambda beta: 2 / beta},
        "agreeing_tokens_are_silent": {},
    },
)
def sppo_hard(logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1) -> Returned:
    """(c - 1 / (2 beta))² + (j + 1 / (2 beta))², where c, j = Σ (logprobs - ref_logprobs) of the chosen and the rejected response.

    returns   [N/2]  nats², one loss per pair; 1 / (2 beta²) while policy and reference agree

    A regression of both log-ratios on ±1 / (2 beta) nats. Its gradient grows with the distance, so one long response far
    from its target outweighs all others: watch the gradient norm beside `margin`.

    When to use: Self-play: pairs of the policy's own samples, ranked anew each round.
    """
    chosen, rejected = log_ratios(logprobs, ref_logprobs, seqs)
    losses = (chosen - 0.5 / beta).square() + (rejected + 0.5 / beta).square()
    return losses, pair_stats(chosen, rejected, beta)


@register_loss(
    "apo_zero",
    per="pair",
    reduction="pair-mean",
    source="D'Oosterlinck et al. 2024, arXiv:2408.06266 eq. 7",
    axes=AXES,
    laws={
        "value_at_reference": {"value": 1.0},
        "swap_symmetry": {},
        "agreeing_tokens_are_silent": {},
    },
)
def apo_zero(logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1) -> Returned:
    """1 - σ(beta c) + σ(beta j), where c, j = Σ (logprobs - ref_logprobs) of the chosen and the rejected response.

    returns   [N/2]  unitless, from 0 to 2, one loss per pair; 1 while policy and reference agree

    For chosen responses that are better than the policy's own: they rise, the rejected ones fall. It is bounded, so a
    response far above or below the reference has hardly a gradient.

    When to use: Chosen answers that are better than the model's own, such as those of a stronger model.
    """
    chosen, rejected = log_ratios(logprobs, ref_logprobs, seqs)
    losses = torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)
    return losses, pair_stats(chosen, rejected, beta)


@register_loss(
    "apo_down",
    per="pair",
    reduction="pair-mean",
    source="D'Oosterlinck et al. 2024, arXiv:2408.06266 eq. 8",
    axes=AXES,
    laws={
        "value_at_reference": {"value": 1.0},
        "swap_symmetry": {},
        "agreeing_tokens_are_silent": {},
    },
)
def apo_down(logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1) -> Returned:
    """σ(beta c) + 1 - σ(beta (c - j)), where c, j = Σ (logprobs - ref_logprobs) of the chosen and the rejected response.

    returns   [N/2]  unitless, from 0 to 2, one loss per pair; 1 while policy and reference agree

    For chosen responses that are worse than the policy's own: both fall, the rejected ones further. `chosen_reward` is
    expected to fall.

    When to use: Chosen answers that are worse than the model's own, such as pairs collected from weaker models.
    """
    chosen, rejected = log_ratios(logprobs, ref_logprobs, seqs)
    losses = torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))
    return losses, pair_stats(chosen, rejected, beta)
