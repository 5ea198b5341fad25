"""Supervised losses: make given tokens likelier."""

from __future__ import annotations

from torch import Tensor

from ..registry import register_loss


@register_loss("cross_entropy", per="token", reduction="sum", source="negative log-likelihood; Shannon 1948")
def cross_entropy(logprobs: Tensor) -> Tensor:
    """-logprobs: the negative log-likelihood of the target tokens, in nats.

    logprobs   [T] or [T, K]  nats, of the K given targets of each position
    returns    [T] or [T, K]  nats

    With [N, K] targets the weights are a distribution over K candidates, row by row, and the loss of a position is
    -Σ_k w_k logprobs_k: soft-label cross-entropy, nothing renormalised.
    """
    return -logprobs
