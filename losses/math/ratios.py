"""Importance ratios that cannot overflow, and estimators of a KL divergence."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.fx import Proxy

from .. import stats
from ..stats import Stat

#: exp(20) is 4.9e8: beyond it a ratio only means "far too large", and exp(89) is infinite in float32.
MAX_LOG_RATIO = 20.0

KLEstimator = Literal["k1", "k2", "k3", "abs", "k1+", "k3+", "k3-corrected"]


def full(values: Tensor) -> Tensor:
    """At least float32: exp(20) is infinite in float16. A traced tensor has the type that its graph will be given."""
    return (
        values if isinstance(values, Proxy) or values.dtype not in (torch.float16, torch.bfloat16) else values.float()
    )


def capped_log_ratio(logprobs: Tensor, old_logprobs: Tensor, cap: float = MAX_LOG_RATIO) -> Tensor:
    """`logprobs - old_logprobs`, held within ±cap nats. Beyond the cap the gradient is zero. At least float32."""
    return full(logprobs - old_logprobs).clamp(-cap, cap)


def safe_ratio(logprobs: Tensor, old_logprobs: Tensor, cap: float = MAX_LOG_RATIO) -> Tensor:
    """exp(logprobs - old_logprobs), the log-ratio capped at ±cap before exp so that neither it nor its gradient overflows."""
    return capped_log_ratio(logprobs, old_logprobs, cap).exp()


def kl_estimate(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    estimator: KLEstimator = "k3",
    sampling_logprobs: Tensor | None = None,
) -> Tensor:
    """One-sample estimates [T] of KL(policy || reference) in nats, at tokens the policy sampled. Schulman 2020.

    With d = logprobs - ref_logprobs, expectations over the policy's own tokens:

    | estimator      | value            | expected value      | expected gradient, as a loss  |
    |----------------|------------------|---------------------|-------------------------------|
    | `k1`           | d                | the KL              | zero: it pulls nowhere        |
    | `k2`           | d²/2             | biased              | of the KL                     |
    | `k3`           | exp(-d) - 1 + d  | the KL, never < 0   | of KL(reference || policy)    |
    | `abs`          | abs(d)           | biased              | of no divergence              |
    | `k1+`, `k3+`   | that of k1, k3   | as k1, k3           | of the KL (k2's)              |
    | `k3-corrected` | r k3             | the KL, off policy  | of the KL, also off policy    |

    In `k3-corrected` r = exp(logprobs - sampling_logprobs) weighs tokens of another sampler and has a gradient
    (DeepSeek-V3.2, arXiv:2512.02556 eq. 7); without sampling_logprobs tokens count as just sampled, so r is 1. In every
    k3 d is held within ±20: beyond, k3 has no gradient. k1, k2 and abs are not capped.
    """
    difference = full(logprobs - ref_logprobs)
    if estimator == "k1":
        return difference
    if estimator == "abs":
        return difference.abs()
    square = 0.5 * difference.square()
    if estimator == "k2":
        return square
    # expm1(x) - x, not exp(x) - 1 - x: near d = 0 the latter loses every digit.
    capped = -difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    k3 = torch.expm1(capped) - capped
    if estimator == "k3-corrected":
        return k3 * safe_ratio(logprobs, logprobs.detach() if sampling_logprobs is None else sampling_logprobs)
    if estimator == "k3":
        return k3
    # Straight through: k2 minus its detached self is 0 in value and has k2's gradient.
    return (difference if estimator == "k1+" else k3).detach() + (square - square.detach())


def ratio_stats(logprobs: Tensor, sampling_logprobs: Tensor, cap: float = MAX_LOG_RATIO) -> dict[str, Stat]:
    """How far the policy has moved from the one that sampled, as every ratio loss reports it.

    `ratio_mean` (1 on policy), `ratio_max`, `ratio_capped` (tokens whose log-ratio hit the cap), `sampling_kl_k1` and
    `sampling_kl_k3` (nats per token, KL from sampler to policy estimated from the tokens), `entropy_estimate` (mean of
    -logprobs, nats per token; an estimate of the policy's entropy while it is near the sampler).
    """
    difference = full(logprobs - sampling_logprobs).detach()
    ratio = difference.clamp(-cap, cap).exp()
    return {
        "ratio_mean": stats.mean(ratio),
        "ratio_max": stats.max(ratio),
        "ratio_capped": stats.sum(difference.abs() > cap),
        "sampling_kl_k1": stats.mean(-difference),
        "sampling_kl_k3": stats.mean(kl_estimate(sampling_logprobs, logprobs.detach(), "k3")),
        "entropy_estimate": stats.mean(-logprobs),
    }
