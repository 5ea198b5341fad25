"""Losses linear in the logprobs: the policy gradient itself, with no ratio."""

from __future__ import annotations

from torch import Tensor

from ..registry import register_loss

_LINEAR = {"on_policy_is_reinforce": {}, "zero_advantage_is_silent": {}}


@register_loss(
    "reinforce",
    per="token",
    reduction="sum",
    source="Williams 1992, Machine Learning 8, eq. 11",
    linear=True,
    differs={
        "Fireworks": "its `reinforce` is importance sampling, -r A, whose KL term is computed from detached logprobs",
        "Tinker": "`stable_reinforce` is another loss, whose formula is not public",
    },
    claims=_LINEAR,
)
def reinforce(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-A logprobs: the policy gradient, with no ratio.

    logprobs     [T]  nats, under the policy in training
    advantages   [T]  unitless; a token of advantage 0 still counts in the denominator
    returns      [T]  nats; its size means nothing, only its gradient does

    Right only for tokens that the policy in training has sampled itself; `importance_sampling` corrects for another sampler.
    """
    return -advantages * logprobs


@register_loss(
    "gpg",
    per="token",
    reduction="token-mean",
    source="Chu et al. 2025, arXiv:2504.02546",
    linear=True,
    claims={**_LINEAR, "is_another_loss": {"loss": "reinforce"}},
)
def gpg(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-A logprobs with group-relative advantages, a mean over all tokens: no ratio, no clip, no reference.

    logprobs     [T]  nats, under the policy in training
    advantages   [T]  unitless, reward - group mean
    returns      [T]  nats; its size means nothing, only its gradient does

    Right only for tokens that the policy in training has sampled itself.
    """
    return reinforce(logprobs, advantages)
