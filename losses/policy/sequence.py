"""Losses over the ratio of a whole response, one weight for all its tokens, and the functions they share with GSPO."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import stats
from ..batch.seqs import Seqs
from ..math.ratios import MAX_LOG_RATIO, ratio_stats
from ..registry import register_loss
from ..spec.axes import Axes
from ..spec.settings import LowerBound, NonNegative, Positive, UpperBound
from ..stats import Stat
from .clipped import clipped_surrogate

#: Lower bound of a response's ratio in VESPO.
MIN_RATIO = 1e-8

SEQUENCE_CLIP = "s within [clip_low, clip_high] where that is the smaller: no gradient for the whole response beyond"


@register_loss(
    "rloo",
    per="datum",
    reduction="mean",
    source="Ahmadian et al. 2024, arXiv:2402.14740; the clipped ratio of whole responses: TRL's RLOOTrainer",
    axes=Axes(ratio="sequence", clip=SEQUENCE_CLIP),
    differs={
        "TRL 1.16.0": "does not cap the sum of log-ratios; its beta, 0.05, is a KL penalty inside the reward",
        "verl 0.9.1": "the name of an advantage, for any loss",
        "SkyRL 0.3.0": "the name of an advantage, for any loss",
    },
    laws={
        "on_policy_is_reinforce": {"reduction": "seq-mean-token-sum"},
        "is_another_loss": {
            "max_length": 1,
            "loss": "ppo",
            "uniform": True,
            "settings": {"reduction": "seq-mean-token-sum"},
        },
        "zero_advantage_is_silent": {},
        "beyond_the_clip_no_gradient": {"nats": 0.25},
    },
)
def rloo(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    seqs: Seqs,
    *,
    clip_low: LowerBound = 0.8,
    clip_high: UpperBound = 1.2,
) -> tuple[Tensor, dict[str, Stat]]:
    """-min(r A, clip(r) A), where r = exp(sum over a response's tokens of logprobs - sampling_logprobs).

    advantages   [T]  unitless, reward - mean of the prompt's other rewards; one for the whole response: their mean is used
    returns      [N]  unitless, one loss per response

    r is a product over tokens, so long responses soon leave the bounds: watch `clip_fraction`, a share of responses. The sum
    is weighted by the tokens' weights and capped at ±20; beyond, a response has no gradient.

    When to use: A reward per response and few, nearly on-policy steps: the whole response is one action.
    """
    ratio = sequence_ratio(seqs.sum(logprobs - sampling_logprobs))
    return clipped_sequences(logprobs, sampling_logprobs, seqs.mean(advantages), ratio, clip_low, clip_high)


@register_loss(
    "gmpo",
    per="datum",
    reduction="mean",
    source="Zhao et al. 2025, arXiv:2507.20673 section 3",
    aliases=("geo_mean",),
    axes=Axes(
        ratio="sequence", clip="each token's log r within [-log_clip_low, log_clip_high] where that is the smaller"
    ),
    differs={
        "verl 0.9.1": "`geo_mean` clips at 0.2 unless set, and counts responses without a token in its mean",
        "TRL 1.16.0": "`GMPOTrainer` does not cap the mean log-ratio",
    },
    laws={
        "on_policy_is_reinforce": {"reduction": "seq-mean-token-mean"},
        "is_another_loss": {
            "own": {"log_clip_low": 1e30, "log_clip_high": 1e30},
            "loss": "gspo",
            "settings": {"clip_low": 0.0, "clip_high": 1e30},
        },
        "zero_advantage_is_silent": {},
        "beyond_the_clip_no_gradient": {"nats": 0.5},
    },
)
def gmpo(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    seqs: Seqs,
    *,
    log_clip_low: NonNegative = 0.4,
    log_clip_high: NonNegative = 0.4,
) -> tuple[Tensor, dict[str, Stat]]:
    """-A exp(mean over a response's tokens of clip(z)), where z = logprobs - sampling_logprobs, clipped on the side A pushes to.

    advantages   [T]  unitless, one for the whole response: their mean is used
    returns      [N]  unitless, one loss per response

    The bounds are distances from 0 in nats: 0.4 bounds the ratio by exp(±0.4). As in PPO, z is clipped only on the side that
    A pushes to, and a token exactly at its bound has a gradient; `clip_fraction` is a share of tokens.

    When to use: As grpo, when single tokens with extreme ratios make training unstable.
    """
    advantage = seqs.mean(advantages)
    log_ratio = logprobs - sampling_logprobs
    pushed = seqs.broadcast(advantage)
    too_high, too_low = (pushed > 0) & (log_ratio > log_clip_high), (pushed < 0) & (log_ratio < -log_clip_low)
    held = torch.where(too_high, torch.full_like(log_ratio, log_clip_high), log_ratio)
    held = torch.where(too_low, torch.full_like(log_ratio, -log_clip_low), held)
    ratio = sequence_ratio(seqs.mean(held))
    return -advantage * ratio, sequence_metrics(logprobs, sampling_logprobs, ratio, too_high | too_low)


@register_loss(
    "vespo",
    per="token",
    couples="datum",
    reduction="token-mean",
    source="arXiv:2602.10693; the form is that of TRL's GRPOTrainer",
    axes=Axes(ratio="sequence", clip="none: a weight exp(λ) W^k exp(-λ W) without gradient, falling off on both sides"),
    differs={"TRL 1.16.0": "folds its correction for the sampler's numerics into W, instead of multiplying by it"},
    laws={"on_policy_is_reinforce": {}, "zero_advantage_is_silent": {}},
)
def vespo(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    seqs: Seqs,
    *,
    k_positive: NonNegative = 2.0,
    lambda_positive: Positive = 3.0,
    k_negative: NonNegative = 3.0,
    lambda_negative: Positive = 2.0,
) -> tuple[Tensor, dict[str, Stat]]:
    """-φ(W) A logprobs, where φ(W) = W^k exp(λ (1 - W)) and W = exp(sum over a response of logprobs - sampling_logprobs).

    advantages   [T]  unitless; the sign of each selects k and λ
    returns      [T]  nats; its value has no meaning, only its gradient

    φ has no gradient; it is 1 on policy and falls to 0 for responses that have become far more or far less likely. Each
    log-ratio is clamped to ±20, log W to [log 1e-8, 20]. `response_weight` is the mean of φ over tokens: near 0, nothing is
    learned.

    When to use: Samples that are several steps old, as in asynchronous training, with a reward per response.
    """
    differences = (logprobs - sampling_logprobs).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    log_ratio = seqs.broadcast(seqs.sum(differences).clamp(math.log(MIN_RATIO), MAX_LOG_RATIO))
    k, rate = (
        torch.where(advantages >= 0, torch.full_like(logprobs, positive), torch.full_like(logprobs, negative))
        for positive, negative in ((k_positive, k_negative), (lambda_positive, lambda_negative))
    )
    weight = (k * log_ratio - rate * torch.expm1(log_ratio)).exp()
    metrics = {"response_weight": stats.mean(weight), **ratio_stats(logprobs, sampling_logprobs)}
    return -weight * advantages * logprobs, metrics


def sequence_ratio(log_ratio: Tensor) -> Tensor:
    """exp of log-ratios clamped to ±20; beyond, there is no gradient."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def clipped_sequences(
    logprobs: Tensor, sampling_logprobs: Tensor, advantage: Tensor, ratio: Tensor, low: float, high: float
) -> tuple[Tensor, dict[str, Stat]]:
    """The clipped surrogate of one ratio and one advantage per response [N], and its metrics."""
    losses, is_clipped = clipped_surrogate(ratio, advantage, low, high)
    return losses, sequence_metrics(logprobs, sampling_logprobs, ratio, is_clipped)


def sequence_metrics(logprobs: Tensor, sampling_logprobs: Tensor, ratio: Tensor, is_clipped: Tensor) -> dict[str, Stat]:
    """The metrics of every loss over responses: `clip_fraction` and the range of the responses' ratios."""
    return {
        "clip_fraction": stats.mean(is_clipped),
        "sequence_ratio_min": stats.min(ratio),
        "sequence_ratio_max": stats.max(ratio),
        **ratio_stats(logprobs, sampling_logprobs),
    }
