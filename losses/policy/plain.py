"""Losses linear in the logprobs: the policy gradient itself, with no ratio or with one that has no gradient."""

from __future__ import annotations

from torch import Tensor

from ..registry import register_loss


@register_loss(
    "reinforce",
    per="token",
    reduction="sum",
    source="Williams 1992, Machine Learning 8, eq. 11",
    differs={
        "Fireworks": "its `reinforce` is importance sampling, -r A, whose KL term is computed from detached logprobs",
        "Tinker": "`stable_reinforce` is another loss, whose formula is not public",
    },
)
def reinforce(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-A logprobs: the policy gradient, with no ratio.

    logprobs     [T]  nats, under the policy in training
    advantages   [T]  unitless; a token of advantage 0 still counts in the denominator
    returns      [T]  nats; its size means nothing, only its gradient does

    Right only for tokens that the policy in training has sampled itself; `importance_sampling` corrects for another sampler.
    """
    return -advantages * logprobs
