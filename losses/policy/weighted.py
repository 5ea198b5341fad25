"""Losses that weight tokens by a ratio without PPO's clip: the weight is truncated, masked or bent smoothly."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .. import stats
from ..math.ratios import ratio_stats, safe_ratio
from ..registry import register_loss
from ..spec.axes import Axes
from ..spec.settings import LowerBound, NonNegative, Positive, UpperBound
from ..stats import Stat

Divergence = Literal["total_variation", "binary_kl"]

#: Lower bound of the probability of all other tokens, so that its logarithm is finite.
MIN_REST = 1e-8

_LAWS = {"on_policy_is_reinforce": {}, "zero_advantage_is_silent": {}}


@register_loss(
    "cispo",
    per="token",
    reduction="sum",
    source="MiniMax 2025, arXiv:2506.13585 section 3.1",
    axes=Axes(ratio="token", clip="r within [clip_low, clip_high] as a constant weight: every token keeps a gradient"),
    differs={
        "Fireworks cookbook 5922b31": "the bounds are [0.8, 1.28], and tokens are added up",
        "TRL 1.16.0": "no lower bound; epsilon_high is the upper bound itself, 0.2 unless set; token-mean",
        "verl 0.9.1": "bounds [0.8, 1.2], token-mean",
        "SkyRL 0.3.0": "bounds [1, 6] unless set: its 0 and 5 are distances from 1; token-mean",
    },
    laws=_LAWS,
)
def cispo(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: LowerBound = 0.0,
    clip_high: UpperBound = 4.0,
) -> tuple[Tensor, dict[str, Stat]]:
    """-clip(r) A logprobs, where r = exp(logprobs - sampling_logprobs) and clip(r) has no gradient.

    returns   [T]  nats; its value has no meaning, only its gradient

    Unlike PPO's, this clip bounds a token's weight but never removes its gradient. `clip_fraction` is the share of tokens
    whose weight was bounded.

    When to use: Several steps on the same samples, when rare but important tokens ("wait", "however") lose their
    gradient to ppo's clip.
    """
    ratio = safe_ratio(logprobs, sampling_logprobs).detach()
    weight = ratio.clamp(clip_low, clip_high)
    metrics = {"clip_fraction": stats.mean(weight != ratio), **ratio_stats(logprobs, sampling_logprobs)}
    return -weight * advantages * logprobs, metrics


@register_loss(
    "rollout_is",
    per="token",
    reduction="token-mean",
    source="Zhipu 2026, arXiv:2602.15763; the form is SkyRL's `rollout_is`",
    axes=Axes(ratio="token", clip="r strictly within (clip_low, clip_high), else weight 0: no gradient beyond"),
    differs={"SkyRL 0.3.0": "adds up tokens whose advantages were scaled before"},
    laws={**_LAWS, "beyond_the_clip_no_gradient": {"nats": 0.25}},
)
def rollout_is(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: LowerBound = 0.8,
    clip_high: UpperBound = 1.2,
) -> tuple[Tensor, dict[str, Stat]]:
    """-r A logprobs where clip_low < r < clip_high, else 0, with r = exp(logprobs - sampling_logprobs) without gradient.

    sampling_logprobs   [T]  nats, as reported by the engine that sampled the token
    returns             [T]  nats; its value has no meaning, only its gradient

    CISPO with a hard zero: a token outside the bounds is dropped even if its advantage pushes it back towards the sampler.
    `clip_fraction` is the share of dropped tokens; when it is large, little is learned.

    When to use: Samples of another engine or of older weights, when tokens with a large mismatch should not count at
    all.
    """
    ratio = safe_ratio(logprobs, sampling_logprobs).detach()
    is_inside = (ratio > clip_low) & (ratio < clip_high)
    weight = torch.where(is_inside, ratio, torch.zeros_like(ratio))
    metrics = {"clip_fraction": stats.mean(~is_inside), **ratio_stats(logprobs, sampling_logprobs)}
    return -weight * advantages * logprobs, metrics


@register_loss(
    "dro",
    per="token",
    reduction="sum",
    source="Richemond et al. 2024, arXiv:2405.19107, a response at a time; a square per token: Kimi K2.5, arXiv:2602.02276",
    axes=Axes(kl="to the sampler, half the squared log-ratio, differentiable"),
    differs={
        "Fireworks cookbook 5922b31": "leaves the penalty out where the advantage is 0",
        "prime-rl 559b447": "adds the squared log-ratio, without the half, to a masked importance-sampling loss instead",
    },
    laws={"on_policy_is_reinforce": {}, "is_another_loss": {"own": {"beta": 0.0}, "loss": "reinforce"}},
)
def dro(
    logprobs: Tensor, sampling_logprobs: Tensor, advantages: Tensor, *, beta: NonNegative = 0.05
) -> tuple[Tensor, dict[str, Stat]]:
    """-A logprobs + beta/2 (logprobs - sampling_logprobs)².

    advantages   [T]  unitless; a token of advantage 0 is still held near its sampler
    returns      [T]  nats; its value has no meaning, only its gradient

    No ratio: a quadratic penalty keeps the policy near the sampler, and its pull has no bound. `quadratic_penalty` is its
    mean per token, including beta.

    When to use: Offline or off-policy data with a reward per response, when ratios would be too noisy.
    """
    penalty = 0.5 * beta * (logprobs - sampling_logprobs).square()
    metrics = {"quadratic_penalty": stats.mean(penalty), **ratio_stats(logprobs, sampling_logprobs)}
    return -advantages * logprobs + penalty, metrics


@register_loss(
    "dppo",
    per="token",
    reduction="token-mean",
    source="arXiv:2602.04879",
    axes=Axes(ratio="token", clip="no gradient where the probability has moved further than delta, the way A pushes"),
    differs={
        "verl 0.9.1": "`dppo_tv` and `dppo_kl` always truncate r: ratio_cap is 3 there (`clip_ratio_c`), and both deltas are 0.2",
        "prime-rl 559b447": "adds 0.001 (log r)² over all tokens, and does not cap the log-ratio",
        "SkyRL 0.3.0": "adds up tokens whose advantages were scaled before; delta is 0.05 with the binary KL",
        "Fireworks cookbook 5922b31": "adds up tokens; the deltas are 0.15, with the binary KL 0.05",
    },
    laws={
        **_LAWS,
        "is_another_loss": {"own": {"delta_low": 1.0, "delta_high": 1.0}, "loss": "importance_sampling"},
    },
)
def dppo(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    *,
    divergence: Divergence = "total_variation",
    delta_low: Positive = 0.2,
    delta_high: Positive = 0.2,
    ratio_cap: UpperBound | None = None,
) -> tuple[Tensor, dict[str, Stat]]:
    """-r A, but 0 where A pushes a token further whose probability has moved by more than delta; r = exp(logprobs - sampling_logprobs).

    sampling_logprobs   [T]  nats, as reported by the engine that sampled the token
    returns             [T]  unitless; with ratio_cap nats, whose value has no meaning, only its gradient

    With "total_variation" a token has moved by |exp(logprobs) - exp(sampling_logprobs)|; with "binary_kl" by the KL in nats
    from the sampler's to the policy's distribution over this token and all others (use a smaller delta, such as 0.05).
    delta_high bounds tokens of A > 0 that have risen, delta_low tokens of A < 0 that have fallen. Unlike a ratio clip, it
    hardly ever removes the gradient of rare tokens. `mask_fraction` is the share of tokens without a gradient.

    ratio_cap: -min(r, ratio_cap) A logprobs, where the truncated ratio has no gradient (section 5.4 of the paper). Below the
    cap that is the same gradient; beyond it a token counts ratio_cap times.

    When to use: As ppo with a large vocabulary, when the ratio clips rare tokens too early and likely tokens too late.
    """
    now, before = logprobs.detach(), sampling_logprobs
    change = now.exp() - before.exp()
    moved = change.abs() if divergence == "total_variation" else _binary_kl(before, now)
    too_high = (advantages > 0) & (change > 0) & (moved > delta_high)
    too_low = (advantages < 0) & (change < 0) & (moved > delta_low)
    is_masked = too_high | too_low
    ratio = safe_ratio(logprobs, sampling_logprobs)
    losses = -(ratio if ratio_cap is None else ratio.detach().clamp(max=ratio_cap) * logprobs) * advantages
    metrics = {
        "mask_fraction": stats.mean(is_masked),
        "mask_fraction_high": stats.mean(too_high),
        "mask_fraction_low": stats.mean(too_low),
        **ratio_stats(logprobs, sampling_logprobs),
    }
    return torch.where(is_masked, torch.zeros_like(losses), losses), metrics


def _binary_kl(before: Tensor, now: Tensor) -> Tensor:
    """[T] nats: KL from the sampler's to the policy's distribution over "this token" and "any other"."""
    rest_before, rest_now = (-torch.expm1(x) for x in (before, now))
    other = rest_before.clamp(min=MIN_REST).log() - rest_now.clamp(min=MIN_REST).log()
    return before.exp() * (before - now) + rest_before * other


@register_loss(
    "sapo",
    per="token",
    reduction="seq-mean-token-mean",
    source="Qwen team 2025, arXiv:2511.20347",
    axes=Axes(ratio="token", clip="none: a sigmoid of r - 1, whose slope falls off on both sides of 1"),
    differs={
        "TRL 1.16.0": "does not cap the log-ratio",
        "SkyRL 0.3.0": "any reduction, with a warning unless it is over sequences",
    },
    laws=_LAWS,
)
def sapo(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    *,
    temperature_positive: Positive = 1.0,
    temperature_negative: Positive = 1.05,
) -> tuple[Tensor, dict[str, Stat]]:
    """-(4/τ) σ(τ (r - 1)) A, where r = exp(logprobs - sampling_logprobs) and τ depends on the sign of A.

    returns   [T]  unitless; on policy -2 A / τ, not -A, though the gradient is that of REINFORCE

    τ is temperature_positive where A > 0, else temperature_negative. The slope of the sigmoid, 1 at r = 1, falls off
    smoothly on both sides instead of ending at a bound. `gate_mean` is its mean: near 0, tokens are too far from their
    sampler.

    When to use: As ppo or grpo, when a hard clip makes training jumpy: tokens fade out with their distance from the
    sampler.
    """
    ratio = safe_ratio(logprobs, sampling_logprobs)
    temperature = torch.where(
        advantages > 0, torch.full_like(ratio, temperature_positive), torch.full_like(ratio, temperature_negative)
    )
    open_share = torch.sigmoid(temperature * (ratio - 1))
    metrics = {"gate_mean": stats.mean(4 * open_share * (1 - open_share)), **ratio_stats(logprobs, sampling_logprobs)}
    return -4 / temperature * open_share * advantages, metrics
