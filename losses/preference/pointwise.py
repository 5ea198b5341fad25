"""Losses that look at either response of a pair by itself: where it should be, not only by how much one should lead."""

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
    claims={
        "value_at_reference": {"value": 2 * math.log(2)},
        "swap_symmetry": {"slope": lambda beta: beta},
        "agreeing_tokens_are_silent": {},
    },
)
def bco_pair(logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1) -> Returned:
    """-log σ(beta c) - log σ(-beta j), where c, j = Σ (logprobs - ref_logprobs) of the chosen, of the rejected response.

    logprobs       [T]    nats, under the policy in training
    ref_logprobs   [T]    nats, under the frozen reference
    returns        [N/2]  nats, one loss a pair; 2 ln 2 while policy and reference agree

    A classifier of either response: the chosen one must rise above the reference, the rejected one fall below it.
    `chosen_reward` falling while `accuracy` rises, as in DPO, costs here.
    """
    chosen, rejected = log_ratios(logprobs, ref_logprobs, seqs)
    return -logsigmoid(beta * chosen) - logsigmoid(-beta * rejected), pair_stats(chosen, rejected, beta)


@register_loss(
    "nca_pair",
    per="pair",
    reduction="pair-mean",
    source="H. Chen et al. 2024, arXiv:2402.05369, for two responses",
    axes=AXES,
    claims={
        "value_at_reference": {"value": 2 * math.log(2)},
        "swap_symmetry": {},
        "agreeing_tokens_are_silent": {},
    },
)
def nca_pair(logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1) -> Returned:
    """-log σ(beta c) - ½ log σ(-beta c) - ½ log σ(-beta j), where c, j = Σ (logprobs - ref_logprobs) of either response.

    logprobs       [T]    nats, under the policy in training
    ref_logprobs   [T]    nats, under the frozen reference
    returns        [N/2]  nats, one loss a pair; 2 ln 2 while policy and reference agree

    The chosen response c is drawn to σ(beta c) = 2/3 and held there; the rejected one j is pushed down. Watch
    `chosen_reward`: it goes to ln 2.
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
    claims={
        "value_at_reference": {"value": lambda beta: 0.5 / beta**2},
        "swap_symmetry": {"slope": lambda beta: 2 / beta},
        "agreeing_tokens_are_silent": {},
    },
)
def sppo_hard(logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1) -> Returned:
    """(c - 1 / (2 beta))² + (j + 1 / (2 beta))², where c, j = Σ (logprobs - ref_logprobs) of either response.

    logprobs       [T]    nats, under the policy in training
    ref_logprobs   [T]    nats, under the frozen reference
    returns        [N/2]  nats², one loss a pair; 1 / (2 beta²) while policy and reference agree

    A regression of both log-ratios on ±1 / (2 beta) nats. Its gradient grows with the distance, so one long response that
    is far off outweighs all others: watch `gradient norm` beside `margin`.
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
    claims={
        "value_at_reference": {"value": 1.0},
        "swap_symmetry": {},
        "agreeing_tokens_are_silent": {},
    },
)
def apo_zero(logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1) -> Returned:
    """1 - σ(beta c) + σ(beta j), where c, j = Σ (logprobs - ref_logprobs) of the chosen, of the rejected response.

    logprobs       [T]    nats, under the policy in training
    ref_logprobs   [T]    nats, under the frozen reference
    returns        [N/2]  unitless, from 0 to 2, one loss a pair; 1 while policy and reference agree

    For chosen responses that are better than what the policy writes: they rise, the rejected ones fall. It is bounded, so
    a response far on either side of the reference has hardly a gradient.
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
    claims={
        "value_at_reference": {"value": 1.0},
        "swap_symmetry": {},
        "agreeing_tokens_are_silent": {},
    },
)
def apo_down(logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1) -> Returned:
    """σ(beta c) + 1 - σ(beta (c - j)), where c, j = Σ (logprobs - ref_logprobs) of either response.

    logprobs       [T]    nats, under the policy in training
    ref_logprobs   [T]    nats, under the frozen reference
    returns        [N/2]  unitless, from 0 to 2, one loss a pair; 1 while policy and reference agree

    For chosen responses that are worse than what the policy writes: both fall, the rejected ones further. A falling
    `chosen_reward` is meant here.
    """
    chosen, rejected = log_ratios(logprobs, ref_logprobs, seqs)
    losses = torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))
    return losses, pair_stats(chosen, rejected, beta)
