"""Pieces that policy losses share: importance ratios that cannot overflow, and estimators of a KL divergence."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from . import stats
from .stats import Stat

#: exp(20) is 4.9e8: past it a ratio says nothing but "far too large", and exp(89) is infinite in float32.
MAX_LOG_RATIO = 20.0

KLEstimator = Literal["k1", "k2", "k3"]


def capped_log_ratio(logprobs: Tensor, old_logprobs: Tensor, cap: float = MAX_LOG_RATIO) -> Tensor:
    """`logprobs - old_logprobs`, held within ±cap nats. Beyond the cap the gradient is zero."""
    return (logprobs - old_logprobs).clamp(-cap, cap)


def safe_ratio(logprobs: Tensor, old_logprobs: Tensor, cap: float = MAX_LOG_RATIO) -> Tensor:
    """exp(logprobs - old_logprobs), the log-ratio capped at ±cap before exp so that neither it nor its gradient overflows."""
    return capped_log_ratio(logprobs, old_logprobs, cap).exp()


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator = "k3") -> Tensor:
    """One-sample estimates [T] of KL(policy || reference) in nats, at tokens the policy sampled. Schulman 2020.

    With d = logprobs - ref_logprobs: k1 = d (unbiased; as a loss its expected gradient is zero), k2 = d²/2 (its gradient
    is that of the reverse KL on policy), k3 = exp(-d) - 1 + d (unbiased and never negative; as a loss its gradient
    1 - exp(-d) is that of the forward KL). In k3 d is held within ±20; beyond, a token has no gradient.
    """
    difference = logprobs - ref_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    # expm1(x) - x, not exp(x) - 1 - x: near d = 0 the latter loses every digit.
    capped = -difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(capped) - capped


def ratio_stats(logprobs: Tensor, sampling_logprobs: Tensor, cap: float = MAX_LOG_RATIO) -> dict[str, Stat]:
    """How far the policy has moved from the one that sampled: the diagnostics every ratio loss reports.

    `ratio_mean` (1 on policy), `ratio_max`, `ratio_capped` (tokens whose log-ratio hit the cap), `sampling_kl_k1` and
    `sampling_kl_k3` (nats a token, KL from sampler to policy as the tokens show it), `entropy_estimate` (mean of
    -logprobs, nats a token; an estimate of the policy's entropy while it is near the sampler).
    """
    difference = (logprobs - sampling_logprobs).detach()
    ratio = difference.clamp(-cap, cap).exp()
    return {
        "ratio_mean": stats.mean(ratio),
        "ratio_max": stats.max(ratio),
        "ratio_capped": stats.sum(difference.abs() > cap),
        "sampling_kl_k1": stats.mean(-difference),
        "sampling_kl_k3": stats.mean(kl_estimate(sampling_logprobs, logprobs.detach(), "k3")),
        "entropy_estimate": stats.mean(-logprobs),
    }
