"""On-policy distillation: the student samples tokens, and the teacher gives their log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import stats
from ..math.ratios import MAX_LOG_RATIO, ratio_stats, safe_ratio
from ..registry import register_loss
from ..spec.axes import Axes
from ..spec.settings import NonNegative, Positive
from ..stats import Stat


@register_loss(
    "sampled_reverse_kl",
    per="token",
    reduction="sum",
    source="Agarwal et al. 2023, arXiv:2306.13649 section 3, with the reverse KL as reward; ratio: arXiv:1707.06347 eq. 6",
    axes=Axes(ratio="token", clip="log-ratio within ±ratio_log_cap", kl="reverse, sampled"),
    differs={
        "Fireworks 1.2.30": "scale is called loss_scale",
        "Tinker 0.38.0": "on-policy distillation: added to the advantages, optionally discounted; no cap published",
        "prime-rl 559b447": "ref_kl: the current policy stands in the advantage; that is `ref_kl`",
        "TRL 1.16.0": "SDFT and SDPO, mode sampled_token: logprobs - teacher_logprobs of the current policy, no ratio",
    },
)
def sampled_reverse_kl(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    teacher_logprobs: Tensor,
    *,
    scale: Positive = 1.0,
    ratio_log_cap: Positive = MAX_LOG_RATIO,
) -> tuple[Tensor, dict[str, Stat]]:
    """-r A, where A = scale (teacher_logprobs - sampling_logprobs) and r = exp(logprobs - sampling_logprobs).

    returns   [T]  unitless

    On policy its expected gradient is that of scale KL(student || teacher). Its value is not that KL, which is `teacher_kl`.
    To add rewards, mix in `importance_sampling`. The log-ratio is clamped to ±ratio_log_cap; `ratio_capped` counts the
    tokens beyond.

    When to use: On-policy distillation from a teacher that only gives logprobs of the sampled tokens.
    """
    difference = teacher_logprobs - sampling_logprobs
    ratio = safe_ratio(logprobs, sampling_logprobs, ratio_log_cap)
    metrics = {
        "teacher_kl": stats.mean(-difference),
        "teacher_nll": stats.mean(-teacher_logprobs),
        **ratio_stats(logprobs, sampling_logprobs, ratio_log_cap),
    }
    return -ratio * scale * difference, metrics


@register_loss(
    "ref_kl",
    per="token",
    reduction="token-mean",
    source="prime-rl's loss component ref_kl (Prime Intellect)",
    axes=Axes(ratio="token", clip="drops tokens that lost probability", kl="reverse, sampled"),
    differs={"prime-rl 559b447": "the log-ratio is not capped before exp"},
)
def ref_kl(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    teacher_logprobs: Tensor,
    *,
    max_drop: NonNegative = 0.2,
    trust_coefficient: NonNegative = 1e-3,
) -> tuple[Tensor, dict[str, Stat]]:
    """-[p - q >= -max_drop] r A + trust_coefficient (log r)², where A = teacher_logprobs - logprobs, detached, and r = p / q.

    logprobs            [T]  nats, under the policy in training; p = exp(logprobs)
    sampling_logprobs   [T]  nats, under the policy that sampled the token; q = exp(sampling_logprobs)
    teacher_logprobs    [T]  nats, of the same tokens under the teacher (the reference)
    returns             [T]  unitless

    As `sampled_reverse_kl`, but the advantage uses the current policy, so it changes while a batch is reused. A token whose
    probability has fallen by more than max_drop has only the second term; `dropped_fraction` is the share of such tokens.
    The log-ratio is capped at ±20 before exp; `ratio_capped` counts the tokens beyond.

    When to use: As sampled_reverse_kl, with several steps on the same samples.
    """
    current = logprobs.detach()
    is_kept = current.exp() - sampling_logprobs.exp() >= -max_drop
    ratio = safe_ratio(logprobs, sampling_logprobs)
    surrogate = torch.where(is_kept, -ratio * (teacher_logprobs - current), 0.0)
    metrics = {
        "teacher_kl": stats.mean(current - teacher_logprobs),
        "dropped_fraction": stats.mean(~is_kept),
        **ratio_stats(logprobs, sampling_logprobs),
    }
    return surrogate + trust_coefficient * (logprobs - sampling_logprobs).square(), metrics
