"""Losses that drop the tokens farthest from their sampler: by the change of a probability, or by a budget for the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import stats
from ..math.ratios import ratio_stats, safe_ratio
from ..registry import register_loss
from ..spec.axes import Axes
from ..spec.settings import NonNegative, Positive
from ..stats import Stat


@register_loss(
    "prime_ipo",
    per="token",
    reduction="token-mean",
    source="INTELLECT Policy Optimization, prime-rl's `ipo`; the mask: arXiv:2602.04879, here either way; the square: arXiv:2602.02276",
    axes=Axes(
        ratio="token",
        clip="no gradient of A where the probability has moved further than delta, either way",
        kl="to the sampler, the squared log-ratio, differentiable, dropped tokens too; off by default",
    ),
    differs={
        "prime-rl 2026-08": "delta is 0.1 (`eps`), kl_coefficient 0.001 (`kl_tau`); does not cap the log-ratio",
        "prime-rl 2026-10": "has no squared term any more; r is at most 10,000, with its gradient; adv_tau scales its advantages",
    },
    laws={
        "on_policy_is_reinforce": {},
        "is_another_loss": {"own": {"delta": 1.0}, "loss": "importance_sampling"},
        "zero_advantage_is_silent": {},
    },
)
def prime_ipo(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    *,
    delta: Positive = 0.3,
    kl_coefficient: NonNegative = 0.0,
) -> tuple[Tensor, dict[str, Stat]]:
    """-r A where |exp(logprobs) - exp(sampling_logprobs)| ≤ delta, else 0, plus kl_coefficient (log r)²; r = exp(logprobs - sampling_logprobs).

    sampling_logprobs   [T]  nats, as reported by the engine that sampled the token
    advantages          [T]  unitless; a token of advantage 0 still counts in the denominator
    returns             [T]  unitless

    Unlike dppo, it drops a token that has moved too far also where A would pull it back. The square holds every token near
    its sampler, dropped ones and those of advantage 0 too. The log-ratio is capped at ±20 in r, not in the square.
    `mask_fraction` is the share of dropped tokens, `squared_log_ratio` the mean of (log r)².

    When to use: Asynchronous training on samples of an engine with other numerics or older weights. When `mask_fraction`
    grows, the samples are too old. The name has nothing to do with `ipo`, the preference loss.
    """
    moved = (logprobs.detach().exp() - sampling_logprobs.exp()).abs()
    is_masked = moved > delta
    losses = -safe_ratio(logprobs, sampling_logprobs) * advantages
    square = (logprobs - sampling_logprobs).square()
    metrics = {
        "mask_fraction": stats.mean(is_masked),
        "squared_log_ratio": stats.mean(square),
        **ratio_stats(logprobs, sampling_logprobs),
    }
    return torch.where(is_masked, torch.zeros_like(losses), losses) + kl_coefficient * square, metrics


@register_loss(
    "m2po",
    per="token",
    couples="batch",
    reduction="token-mean",
    source="Zheng et al. 2025, arXiv:2510.01161; the mask is AReaL's (`m2_threshold`)",
    axes=Axes(ratio="token", clip="none for the tokens of largest (log r)², until the batch's mean is below threshold"),
    differs={
        "AReaL 1.0.4": "measures the policy before the update; clips r too; keeps the nearest token at least; dropped tokens "
        "leave the denominator",
        "M2PO 2025-10": "the authors' code measures pushed tokens only (only_pushed), and clips r at the distance that keeps "
        "the mean below 0.04, but not closer than [0.7, 1.5]",
    },
    laws={
        "on_policy_is_reinforce": {},
        "is_another_loss": {"own": {"threshold": 1e30}, "loss": "importance_sampling"},
        "zero_advantage_is_silent": {},
    },
)
def m2po(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    *,
    threshold: Positive = 0.04,
    only_pushed: bool = False,
) -> tuple[Tensor, dict[str, Stat]]:
    """-r A, but 0 for the fewest tokens without which the batch's mean of (log r)² is below threshold; r = exp(logprobs - sampling_logprobs).

    returns   [T]  unitless

    Dropped are the tokens of largest (log r)²; of several equal ones all or none, so the order of tokens does not matter. If
    even the smallest reaches threshold, all are dropped. only_pushed: count and drop only tokens that have moved the way A
    pushes (A > 0 and risen, A < 0 and fallen). `second_moment` is the mean of (log r)² over all tokens, nats²;
    `mask_fraction` the share of dropped tokens.

    When to use: Samples that are many steps old. A clip drops every token beyond a bound; here the batch has a budget, so
    that few tokens are dropped while most are near their sampler. Watch `mask_fraction`.
    """
    difference = logprobs.detach().float().double() - sampling_logprobs.float().double()
    square = difference.square()
    counted = torch.where(advantages * difference > 0, square, torch.inf) if only_pushed else square
    is_masked = (counted >= _first_dropped(counted, threshold)) & (counted < torch.inf)
    losses = -safe_ratio(logprobs, sampling_logprobs) * advantages
    metrics = {
        "second_moment": stats.mean(square),
        "mask_fraction": stats.mean(is_masked),
        **ratio_stats(logprobs, sampling_logprobs),
    }
    return torch.where(is_masked, torch.zeros_like(losses), losses), metrics


def _first_dropped(values: Tensor, threshold: float) -> Tensor:
    """The smallest value at which the mean of all values up to it reaches threshold; infinite if it never does."""
    ascending = values.sort().values
    means = ascending.cumsum(0) / torch.ones_like(ascending).cumsum(0)
    reached = torch.where(means >= threshold, ascending, torch.inf)
    return torch.cat([reached, reached.new_full((1,), torch.inf)]).min()
