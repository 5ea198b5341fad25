"""Shared by preference losses: the two responses of a pair, scores of a log-ratio, and common metrics.

Datums 2i and 2i+1 are a pair, the chosen response first. Sums are over a response, tokens weighted by their weights.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .. import stats
from ..batch.seqs import Seqs
from ..spec.axes import Axes
from ..stats import Stat

#: exp(80) is 5.5e34, which float32 can hold, also multiplied by a few hundred; exp(89) overflows.
MAX_EXPONENT = 80.0

#: The losses and metrics that a preference loss returns.
Returned = tuple[Tensor, dict[str, Stat]]
#: The reference enters through beta, without a KL term of its own.
AXES = Axes(kl="to the reference, implied by beta: no term of its own")

Divergence = Literal["reverse_kl", "alpha", "forward_kl", "js"]


def log_ratios(logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs) -> tuple[Tensor, Tensor]:
    """([P], [P]) nats: Σ (logprobs - ref_logprobs) of the chosen and of the rejected responses."""
    return seqs.pairs(seqs.sum(logprobs - ref_logprobs))


def smoothed_logistic(logits: Tensor, label_smoothing: float) -> Tensor:
    """-(1 - ε) log σ(x) - ε log σ(-x): the logistic loss if a share ε of the labels is swapped."""
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


def capped_exponent(exponent: Tensor) -> Tensor:
    """`exponent` clamped to at most MAX_EXPONENT. Beyond it the gradient is zero."""
    return exponent.clamp(max=MAX_EXPONENT)


def divergence_score(log_ratio: Tensor, divergence: Divergence, alpha: float) -> tuple[Tensor, Tensor]:
    """f'(exp(log_ratio)), shifted to 0 at log-ratio 0, and a mask of capped elements. Wang et al. 2023, arXiv:2309.16240.

    With x the log-ratio: reverse_kl x; forward_kl 1 - exp(-x); js log 2 + log σ(x); alpha (exp((α - 1) x) - 1) / (α - 1),
    which is x at α = 1. Exponents are capped at 80; beyond, a response has no gradient.
    """
    if divergence == "js":
        return math.log(2) + logsigmoid(log_ratio), torch.zeros_like(log_ratio, dtype=torch.bool)
    power = {"reverse_kl": 0.0, "forward_kl": -1.0, "alpha": alpha - 1}[divergence]
    if abs(power) < 1e-6:
        return log_ratio, torch.zeros_like(log_ratio, dtype=torch.bool)
    exponent = power * log_ratio
    return torch.expm1(capped_exponent(exponent)) / power, exponent > MAX_EXPONENT


def pair_stats(chosen: Tensor, rejected: Tensor, beta: float = 1.0) -> dict[str, Stat]:
    """`accuracy` (share of pairs in the right order), `margin` (chosen - rejected), and both scores times beta as rewards."""
    margin = chosen - rejected
    return {
        "accuracy": stats.mean(margin > 0),
        "margin": stats.mean(margin),
        "chosen_reward": stats.mean(beta * chosen),
        "rejected_reward": stats.mean(beta * rejected),
    }
