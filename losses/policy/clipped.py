"""Losses over the importance ratio itself, and PPO's pessimistic clip of it, token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import stats
from ..axes import Axes
from ..config import LowerBound, NonNegative, Positive, UpperBound
from ..ratios import MAX_LOG_RATIO, KLEstimator, kl_estimate, ratio_stats, safe_ratio
from ..registry import register_loss
from ..stats import Stat


@register_loss(
    "importance_sampling",
    per="token",
    reduction="sum",
    source="Kloek & van Dijk 1978; as a policy loss: arXiv:1707.06347 eq. 6",
)
def importance_sampling(
    logprobs: Tensor, sampling_logprobs: Tensor, advantages: Tensor, *, ratio_log_cap: Positive = MAX_LOG_RATIO
) -> tuple[Tensor, dict[str, Stat]]:
    """-r A, where r = exp(logprobs - sampling_logprobs). No clip.

    logprobs            [T]  nats, under the policy in training
    sampling_logprobs   [T]  nats, under the policy that sampled the token
    advantages          [T]  unitless; a token of advantage 0 still counts in the denominator
    returns             [T]  unitless

    The log-ratio is held within ±ratio_log_cap before exp; beyond it a token has no gradient, and `ratio_capped` counts
    how many. On policy the gradient is that of REINFORCE.
    """
    ratio = safe_ratio(logprobs, sampling_logprobs, ratio_log_cap)
    return -ratio * advantages, ratio_stats(logprobs, sampling_logprobs, ratio_log_cap)


@register_loss(
    "ppo",
    per="token",
    reduction="sum",
    source="Schulman et al. 2017, arXiv:1707.06347 eq. 7; separate bounds: arXiv:2503.14476 eq. 8",
    axes=Axes(ratio="token", clip="r within [clip_low, clip_high] where that is the smaller: no gradient beyond"),
    claims={
        "on_policy_is_reinforce": {},
        "is_another_loss": {"own": {"clip_low": 0.0, "clip_high": 1e30}, "loss": "importance_sampling"},
    },
)
def ppo(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    clip_low_threshold: Tensor | None = None,
    clip_high_threshold: Tensor | None = None,
    *,
    clip_low: LowerBound = 0.8,
    clip_high: UpperBound = 1.2,
) -> tuple[Tensor, dict[str, Stat]]:
    """-min(r A, clip(r) A), where r = exp(logprobs - sampling_logprobs).

    logprobs              [T]  nats, under the policy in training
    sampling_logprobs     [T]  nats, under the policy that sampled the token
    advantages            [T]  unitless; a token of advantage 0 still counts in the denominator
    clip_low_threshold    [T]  unitless, optional: bounds of single tokens instead of clip_low
    clip_high_threshold   [T]  unitless, optional: bounds of single tokens instead of clip_high
    returns               [T]  unitless

    The bounds are ratios, not distances from 1. Exactly at a bound the gradient is that of the unclipped side. The
    log-ratio is capped at ±20 before exp; `ratio_capped` counts how often.
    """
    low = clip_low if clip_low_threshold is None else clip_low_threshold
    high = clip_high if clip_high_threshold is None else clip_high_threshold
    losses, clipped = clipped_surrogate(logprobs, sampling_logprobs, advantages, low, high)
    return losses, {"clip_fraction": stats.mean(clipped), **ratio_stats(logprobs, sampling_logprobs)}


@register_loss(
    "grpo",
    per="token",
    reduction="token-mean",
    source="Shao et al. 2024, arXiv:2402.03300 eq. 3 and 4; token-mean: arXiv:2503.14476 eq. 8",
    required_if={"ref_logprobs": "kl_coefficient"},
)
def grpo(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    ref_logprobs: Tensor | None = None,
    *,
    clip_low: LowerBound = 0.8,
    clip_high: UpperBound = 1.2,
    kl_coefficient: NonNegative = 0.001,
    kl_estimator: KLEstimator = "k3",
) -> tuple[Tensor, dict[str, Stat]]:
    """-min(r A, clip(r) A) + kl_coefficient KL(policy || reference), with group-relative advantages.

    logprobs            [T]  nats, under the policy in training
    sampling_logprobs   [T]  nats, under the policy that sampled the token
    advantages          [T]  unitless, usually (reward - group mean) / group deviation
    ref_logprobs        [T]  nats, under a frozen reference; needed unless kl_coefficient is 0
    returns             [T]  unitless

    The KL term is differentiable and estimated a token at a time (see `kl_estimate` for what its gradient is).
    """
    losses, clipped = clipped_surrogate(logprobs, sampling_logprobs, advantages, clip_low, clip_high)
    metrics = {"clip_fraction": stats.mean(clipped), **ratio_stats(logprobs, sampling_logprobs)}
    if ref_logprobs is None:  # the metric stays, as a mean of nothing: a rank without data knows no reference either
        return losses, {**metrics, "ref_kl": stats.mean(logprobs.new_zeros(0))}
    divergence = kl_estimate(logprobs, ref_logprobs, kl_estimator, sampling_logprobs)
    return losses + kl_coefficient * divergence, {**metrics, "ref_kl": stats.mean(divergence)}


def clipped_surrogate(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    low: float | Tensor,
    high: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic surrogate [T], and which tokens [T] the clip left without a gradient."""
    ratio = safe_ratio(logprobs, sampling_logprobs)
    clipped = torch.minimum(torch.maximum(ratio, _like(low, ratio)), _like(high, ratio))
    is_clipped = clipped * advantages < ratio * advantages
    # where, not minimum: at a tie minimum would split the gradient between a live and a dead branch.
    return -torch.where(is_clipped, clipped * advantages, ratio * advantages), is_clipped


def _like(bound: float | Tensor, ratio: Tensor) -> Tensor:
    return torch.full_like(ratio, bound) if isinstance(bound, float | int) else bound
