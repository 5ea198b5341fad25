"""Losses over a token's importance ratio: the ratio itself, PPO's pessimistic clip, and PPO's clip with a second bound."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from .. import stats
from ..math.ratios import MAX_LOG_RATIO, ratio_stats, safe_ratio
from ..registry import register_loss
from ..spec.axes import Axes
from ..spec.settings import LowerBound, Positive, UpperBound
from ..stats import Stat

#: Highest ratio at which a token of negative advantage has a gradient; above the upper bound of the clip.
DualClip = Annotated[float, Gt(1)]

#: The clip on the cards of all losses with PPO's clip.
PESSIMISTIC = "r within [clip_low, clip_high] where that is the smaller: no gradient beyond"


@register_loss(
    "importance_sampling",
    per="token",
    reduction="sum",
    source="Kloek & van Dijk 1978; as a policy loss: arXiv:1707.06347 eq. 6",
    axes=Axes(ratio="token", clip="log r within ±ratio_log_cap: no gradient beyond"),
    differs={
        "Tinker 0.38.0": "whether the log-ratio is capped is not public",
        "SkyRL 0.3.0": "its JAX backend takes the mean over each sequence's tokens",
    },
    laws={"on_policy_is_reinforce": {}, "zero_advantage_is_silent": {}},
)
def importance_sampling(
    logprobs: Tensor, sampling_logprobs: Tensor, advantages: Tensor, *, ratio_log_cap: Positive = MAX_LOG_RATIO
) -> tuple[Tensor, dict[str, Stat]]:
    """-r A, where r = exp(logprobs - sampling_logprobs). No clip.

    advantages   [T]  unitless; a token of advantage 0 still counts in the denominator
    returns      [T]  unitless

    The log-ratio is clamped to ±ratio_log_cap before exp; beyond it a token has no gradient, and `ratio_capped` counts
    such tokens. On policy the gradient is that of REINFORCE.

    When to use: Samples that are slightly off-policy, such as those of an inference engine, used for one step. For
    several steps on the same samples take a loss with a clip, such as ppo.
    """
    ratio = safe_ratio(logprobs, sampling_logprobs, ratio_log_cap)
    return -ratio * advantages, ratio_stats(logprobs, sampling_logprobs, ratio_log_cap)


@register_loss(
    "ppo",
    per="token",
    reduction="sum",
    source="Schulman et al. 2017, arXiv:1707.06347 eq. 7; separate bounds: arXiv:2503.14476 eq. 8",
    axes=Axes(ratio="token", clip=PESSIMISTIC),
    differs={
        "Tinker 0.38.0": "whether the log-ratio is capped is not public",
        "verl 0.9.1": "its `vanilla` always has the dual clip at 3, and takes the token-mean",
        "SkyRL 0.3.0": "its `regular` takes distances 0.2 from 1, not bounds; advantages are scaled before its sum",
        "TRL 1.16.0": "the clip of `GRPOTrainer` takes distances from 1 and does not cap the log-ratio",
    },
    laws={
        "on_policy_is_reinforce": {},
        "is_another_loss": {"own": {"clip_low": 0.0, "clip_high": 1e30}, "loss": "importance_sampling"},
        "zero_advantage_is_silent": {},
        "beyond_the_clip_no_gradient": {"nats": 0.25},
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

    advantages            [T]  unitless; a token of advantage 0 still counts in the denominator
    clip_low_threshold    [T]  unitless, optional: bounds per token instead of clip_low
    clip_high_threshold   [T]  unitless, optional: bounds per token instead of clip_high
    returns               [T]  unitless

    The bounds are ratios, not distances from 1. Exactly at a bound the gradient is that of the unclipped side. The
    log-ratio is capped at ±20 before exp; `ratio_capped` counts such tokens.

    When to use: Several steps on the same samples, with an advantage per token (a value function) or per response. The
    usual first choice in policy optimisation.
    """
    low = clip_low if clip_low_threshold is None else clip_low_threshold
    high = clip_high if clip_high_threshold is None else clip_high_threshold
    return clipped_tokens(logprobs, sampling_logprobs, advantages, low, high)


@register_loss(
    "dual_clip",
    per="token",
    reduction="token-mean",
    source="Ye et al. 2019, arXiv:1912.09729",
    axes=Axes(ratio="token", clip=f"{PESSIMISTIC}; r at most dual_clip where A < 0: no gradient beyond"),
    differs={
        "verl 0.9.1": "it is part of `vanilla` and cannot be turned off there",
        "TRL 1.16.0": "its `delta` caps r before the minimum is taken, which is the same, and is off by default",
        "Fireworks cookbook 5922b31": "an option of `dapo`, off by default",
    },
    laws={
        "on_policy_is_reinforce": {},
        "is_another_loss": {
            "own": {"dual_clip": 1e30},
            "loss": "ppo",
        },
        "zero_advantage_is_silent": {},
        "beyond_the_clip_no_gradient": {"nats": 0.25},
    },
)
def dual_clip(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: LowerBound = 0.8,
    clip_high: UpperBound = 1.2,
    dual_clip: DualClip = 3.0,
) -> tuple[Tensor, dict[str, Stat]]:
    """-min(r A, clip(r) A), but at most -dual_clip A where A < 0, with r = exp(logprobs - sampling_logprobs).

    returns   [T]  unitless

    For A < 0, PPO's loss grows with r without bound; here a token has no gradient once r exceeds `dual_clip`.
    `dual_clip_fraction` is the share of such tokens.

    When to use: As ppo, when responses with negative advantages have become far more likely than they were and their
    gradients explode.
    """
    return clipped_tokens(logprobs, sampling_logprobs, advantages, clip_low, clip_high, dual_clip)


def clipped_tokens(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    low: float | Tensor,
    high: float | Tensor,
    dual: float | None = None,
) -> tuple[Tensor, dict[str, Stat]]:
    """The clipped surrogate of each token's ratio, and its metrics; `dual` caps the ratio where A < 0."""
    ratio = safe_ratio(logprobs, sampling_logprobs)
    losses, is_clipped = clipped_surrogate(ratio, advantages, low, high)
    metrics = {"clip_fraction": stats.mean(is_clipped), **ratio_stats(logprobs, sampling_logprobs)}
    if dual is None:
        return losses, metrics
    is_capped = (advantages < 0) & (ratio > dual)
    return torch.where(is_capped, -dual * advantages, losses), {**metrics, "dual_clip_fraction": stats.mean(is_capped)}


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, low: float | Tensor, high: float | Tensor
) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r) A) in the shape of `ratio`, and where the clip left no gradient."""
    clipped = torch.minimum(torch.maximum(ratio, _like(low, ratio)), _like(high, ratio))
    is_clipped = clipped * advantages < ratio * advantages
    # where, not minimum: at a tie minimum splits the gradient between both branches, and the clipped one has none.
    return -torch.where(is_clipped, clipped * advantages, ratio * advantages), is_clipped


def _like(bound: float | Tensor, ratio: Tensor) -> Tensor:
    return torch.full_like(ratio, bound) if isinstance(bound, float | int) else bound
