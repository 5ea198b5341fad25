"""PPO that preserves the policy's entropy: it restrains the few tokens of highest covariance of logprob and advantage."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from .. import stats
from ..math.ratios import ratio_stats, safe_ratio
from ..registry import register_loss
from ..spec.axes import Axes
from ..spec.settings import Count, LowerBound, NonNegative, UpperBound
from ..stats import Stat
from .clipped import PESSIMISTIC, clipped_surrogate

Share = Annotated[float, Ge(0), Le(1)]

#: Lots are 32-bit numbers; this one is never drawn.
NO_LOT = 1 << 32
_LOW_BITS = NO_LOT - 1
#: Odd, below 2^31, so that a product with a 32-bit number fits into 63 bits.
_MULTIPLIER = 0x45D9F3B


@register_loss(
    "clip_cov",
    per="token",
    couples="batch",
    reduction="token-mean",
    source="Cui et al. 2025, arXiv:2505.22617 section 4.2",
    axes=Axes(ratio="token", clip=f"{PESSIMISTIC}; none either for a few tokens of high covariance"),
    conflict=lambda settings: empty_band(settings["covariance_low"], settings["covariance_high"]),
    differs={
        "verl 0.9.1": "draws with torch's generator, exactly as many tokens as `share` says, and does not cap the log-ratio",
        "SkyRL 0.3.0": "draws with torch's generator; covariances of advantages over the number of tokens, so that the bounds hardly bind",
    },
    laws={
        "is_another_loss": {"own": {"covariance_low": 1e30, "covariance_high": 2e30}, "loss": "ppo"},
        "zero_advantage_is_silent": {},
        "beyond_the_clip_no_gradient": {"nats": 0.25},
    },
)
def clip_cov(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: LowerBound = 0.8,
    clip_high: UpperBound = 1.2,
    share: Share = 0.0002,
    covariance_low: float = 1.0,
    covariance_high: float = 5.0,
    seed: Count = 0,
) -> tuple[Tensor, dict[str, Stat]]:
    """-min(r A, clip(r) A), but 0 for a few drawn tokens whose (A - mean A)(logprob - mean logprob) is high.

    returns   [T]  unitless

    max(1, int(share T)) tokens of the batch's T are drawn from those whose covariance lies strictly between covariance_low
    and covariance_high and that PPO's clip leaves a gradient. A token's lot is a hash of `seed` and its three numbers, so
    it does not depend on the order of tokens; tokens with the same three numbers are drawn together. Change `seed` from
    step to step. `covariance_fraction` is the share of tokens drawn.

    When to use: When entropy collapses early: a few of the tokens that lower it most are left out.
    """
    ratio = safe_ratio(logprobs, sampling_logprobs)
    losses, is_clipped = clipped_surrogate(ratio, advantages, clip_low, clip_high)
    covariance = _covariance(logprobs, advantages)
    is_candidate = (covariance > covariance_low) & (covariance < covariance_high) & ~is_clipped
    lots = _lots(seed, logprobs.detach(), sampling_logprobs, advantages)
    lots = torch.where(is_candidate, lots, torch.full_like(lots, NO_LOT))
    is_drawn = is_candidate & (lots <= _smallest(lots, _number(share, logprobs)))
    metrics = {
        "clip_fraction": stats.mean(is_clipped),
        "covariance_fraction": stats.mean(is_drawn),
        **ratio_stats(logprobs, sampling_logprobs),
    }
    return torch.where(is_drawn, torch.zeros_like(losses), losses), metrics


@register_loss(
    "kl_cov",
    per="token",
    couples="batch",
    reduction="token-mean",
    source="Cui et al. 2025, arXiv:2505.22617 section 4.2",
    axes=Axes(ratio="token", kl="to the sampler, |log r|, differentiable, on a few tokens of high covariance"),
    differs={
        "verl 0.9.1": "exactly as many tokens as `share` says; does not cap the log-ratio; kl_coefficient is 1 unless its config says 0.1",
        "SkyRL 0.3.0": "share 0.2; kl_coefficient 1, a sum over tokens beside a mean of r A; does not cap the log-ratio",
    },
    laws={
        "on_policy_is_reinforce": {},
        "is_another_loss": {"own": {"kl_coefficient": 0.0}, "loss": "importance_sampling"},
    },
)
def kl_cov(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    *,
    share: Share = 0.0002,
    kl_coefficient: NonNegative = 0.1,
) -> tuple[Tensor, dict[str, Stat]]:
    """-r A, plus kl_coefficient |log r| for the tokens whose (A - mean A)(logprob - mean logprob) is highest.

    returns   [T]  unitless

    These are the max(1, int(share T)) highest of the batch's T tokens, and any that tie with the last of them. There is no
    clip. `covariance_fraction` is the share of tokens with the penalty.

    When to use: When entropy collapses early: a few of the tokens that lower it most are pulled back. Usually steadier
    than clip_cov.
    """
    covariance = _covariance(logprobs, advantages)
    is_held = -covariance <= _smallest(-covariance, _number(share, logprobs))
    penalty = kl_coefficient * (logprobs - sampling_logprobs).abs()
    losses = -safe_ratio(logprobs, sampling_logprobs) * advantages
    metrics = {"covariance_fraction": stats.mean(is_held), **ratio_stats(logprobs, sampling_logprobs)}
    return losses + torch.where(is_held, penalty, torch.zeros_like(penalty)), metrics


def empty_band(low: float, high: float) -> str:
    """Why no covariance lies strictly between the bounds, or ""."""
    if low < high:
        return ""
    return f"covariance_low={low:g} is not below covariance_high={high:g}, so no token could be drawn"


def _covariance(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """[T] float64 (A - mean A)(logprob - mean logprob) over the batch; no gradient.

    Inputs are rounded to float32, so that float64 sums are exact and neither order nor precision breaks a tie.
    """
    policy, advantage = (x.detach().float().double() for x in (logprobs, advantages))
    return (advantage - advantage.mean()) * (policy - policy.mean())


def _number(share: float, tokens: Tensor) -> int:
    return max(1, int(share * len(tokens)))


def _smallest(values: Tensor, number: int) -> Tensor:
    """[1] the number-th smallest value, or the largest if there are fewer; [0] without values."""
    return values.sort().values[:number][-1:]


def _lots(seed: int, *numbers: Tensor) -> Tensor:
    """[T] int64 in [0, 2^32): a hash of the seed and of each token's numbers as float32."""
    lots = torch.zeros_like(numbers[0], dtype=torch.int64) + (seed & _LOW_BITS)
    for one in numbers:
        bits = (one.detach().float() + 0.0).view(torch.int32).long() & _LOW_BITS  # + 0.0 turns -0.0 into 0.0
        lots = _mixed(lots ^ bits)
    return lots


def _mixed(lots: Tensor) -> Tensor:
    for _ in range(2):
        lots = ((lots >> 16) ^ lots) * _MULTIPLIER & _LOW_BITS
    return (lots >> 16) ^ lots
