"""Losses for samples that the policy did not just draw: tapered weights, and weights by what became of a token's future."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .. import stats
from ..batch.seqs import Seqs
from ..math.ratios import MAX_LOG_RATIO, capped_log_ratio, ratio_stats
from ..registry import register_loss
from ..spec.axes import Axes
from ..spec.settings import LowerBound, Positive, UpperBound
from ..stats import Stat
from .clipped import PESSIMISTIC, DualClip, clipped_tokens

#: Bounds of FIPO's weight for a punished token that has become far more likely.
SAFE_LOW, SAFE_HIGH = 0.8, 1.0


@register_loss(
    "topr",
    per="token",
    couples="datum",
    reduction="seq-mean-token-sum",
    source="Le Roux et al. 2025, arXiv:2503.14286",
    axes=Axes(ratio="sequence", clip="a constant weight within bounds of its own where A > 0 and where A < 0"),
    differs={
        "ROLL 2025-08": "level 'token'; the two signs are told apart by the reward, above 0 or not, and have coefficients",
        "verl 0.9.1": "`bypass_mode` with loss_type 'reinforce' is level 'token' or 'sequence' with the bounds [0, 2] for both "
        "signs, and can reject beside it",
    },
    laws={
        "on_policy_is_reinforce": {},
        "is_another_loss": [
            {"own": {"negative_low": 1.0}, "loss": "reinforce"},
            {
                "own": {"level": "token", "positive_low": 0.0, "positive_high": 4.0, "negative_high": 4.0},
                "loss": "cispo",
            },
        ],
        "zero_advantage_is_silent": {},
    },
)
def topr(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    seqs: Seqs,
    *,
    level: Literal["sequence", "token"] = "sequence",
    positive_low: LowerBound = 1.0,
    positive_high: UpperBound = 1.0,
    negative_low: LowerBound = 0.0,
    negative_high: UpperBound = 1.0,
) -> tuple[Tensor, dict[str, Stat]]:
    """-w A logprobs, where w is 1 for A > 0 and min(r, 1) for A < 0, without gradient; r = exp(sum over a response of logprobs - sampling_logprobs).

    advantages   [T]  unitless, a reward or a reward minus a baseline; the sign of each selects the bounds
    returns      [T]  nats; its value has no meaning, only its gradient

    Good responses are learned in full however unlikely they are; bad ones count less the further the policy has left them,
    so that their likelihood need not fall for ever. level "token" takes each token's own ratio instead of its response's.
    The bounds hold w: w = r within [positive_low, positive_high] where A > 0, within [negative_low, negative_high] elsewhere;
    with both [0, c] it is REINFORCE with truncated importance sampling. The logarithm of r is capped at ±20.
    `positive_weight` and `negative_weight` are the means of w where A > 0 and where A < 0.

    When to use: Offline or old samples with right and wrong responses, without a KL term. Watch `negative_weight`: near 0
    the wrong responses teach nothing more. The baseline that is subtracted from rewards decides how much wrong responses
    weigh beside right ones.
    """
    difference = (logprobs - sampling_logprobs).detach()
    if level == "sequence":
        difference = seqs.broadcast(seqs.plain_sum(difference))
    ratio = capped_log_ratio(difference, torch.zeros_like(difference)).exp()
    rewarded, punished = advantages > 0, advantages < 0
    positive, negative = ratio.clamp(positive_low, positive_high), ratio.clamp(negative_low, negative_high)
    weight = torch.where(rewarded, positive, negative)
    metrics = {
        "positive_weight": stats.mean(weight, rewarded),
        "negative_weight": stats.mean(weight, punished),
        **ratio_stats(logprobs, sampling_logprobs),
    }
    return -weight * advantages * logprobs, metrics


@register_loss(
    "fipo",
    per="token",
    couples="datum",
    reduction="token-mean",
    source="Ma et al. 2026, arXiv:2603.19835; the form is ms-swift's loss_type 'fipo'",
    axes=Axes(ratio="token", clip=f"{PESSIMISTIC}; times a weight without gradient made of later tokens' log-ratios"),
    differs={
        "ms-swift 4.6.0": "counts the tokens that others wrote in the distances between tokens; caps no log-ratio",
    },
    laws={
        "on_policy_is_reinforce": {},
        "is_another_loss": {"own": {"weight_low": 1.0, "weight_high": 1.0, "safe_ratio": None}, "loss": "ppo"},
        "zero_advantage_is_silent": {},
        "beyond_the_clip_no_gradient": {"nats": 0.25},
    },
)
def fipo(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    seqs: Seqs,
    *,
    clip_low: LowerBound = 0.8,
    clip_high: UpperBound = 1.2,
    dual_clip: DualClip | None = None,
    half_life: Positive = 32.0,
    weight_low: LowerBound = 1.0,
    weight_high: UpperBound = 1.2,
    safe_ratio: UpperBound | None = 4.0,
) -> tuple[Tensor, dict[str, Stat]]:
    """-f min(r A, clip(r) A), where f = exp(sum over this and later tokens of 2^(-distance / half_life) log r), without gradient.

    advantages   [T]  unitless, usually (reward - group mean) / group deviation
    returns      [T]  unitless

    r = exp(logprobs - sampling_logprobs) of each token; the sum is over the tokens of its response that have a weight, at
    distance 0, 1, 2, ..., and half_life is in tokens. f is held within [weight_low, weight_high]. So a token counts more if
    the policy has made its future more likely. dual_clip: as in dapo, and a token with r beyond it is left out of the sums.
    safe_ratio: a punished token with r beyond it has f within [0.8, 1] instead; None switches that off. Log-ratios and sums
    are capped at ±20. `future_kl` is the mean of the sums, nats; `future_weight` the mean of f.

    When to use: Long reasoning with one reward per response, several steps on the same samples: it tells the tokens of a
    response apart. In the first step on fresh samples f is 1 everywhere, so this is ppo.
    """
    log_ratio = capped_log_ratio(logprobs, sampling_logprobs).detach()
    if dual_clip is not None:
        log_ratio = torch.where(log_ratio.exp() > dual_clip, torch.zeros_like(log_ratio), log_ratio)
    future = _discounted(log_ratio, seqs.index.to(log_ratio.device), 0.5 ** (1 / half_life))
    weight = future.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().clamp(weight_low, weight_high)
    if safe_ratio is not None:
        is_unsafe = (advantages < 0) & (capped_log_ratio(logprobs, sampling_logprobs).detach().exp() > safe_ratio)
        weight = torch.where(is_unsafe, weight.clamp(SAFE_LOW, SAFE_HIGH), weight)
    losses, metrics = clipped_tokens(logprobs, sampling_logprobs, advantages, clip_low, clip_high, dual_clip)
    return weight * losses, {**metrics, "future_kl": stats.mean(future), "future_weight": stats.mean(weight)}


def _discounted(values: Tensor, owner: Tensor, discount: float) -> Tensor:
    """[T]: Σ_{k ≥ t} discount^(k - t) values_k over the tokens of the same owner, in log2(T) doublings of the window."""
    sums, reach = values, 1
    while reach < len(values):
        is_same = owner[reach:] == owner[:-reach]
        later = torch.where(is_same, sums[reach:], torch.zeros_like(sums[reach:])) * discount**reach
        sums = torch.cat([sums[:-reach] + later, sums[-reach:]])
        reach *= 2
    return sums
