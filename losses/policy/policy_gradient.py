"""Losses linear in the logprobs: the policy gradient itself, without a ratio."""

from __future__ import annotations

from torch import Tensor

from ..registry import register_loss

_LAWS = {"on_policy_is_reinforce": {}, "zero_advantage_is_silent": {}}


@register_loss(
    "reinforce",
    per="token",
    reduction="sum",
    source="Williams 1992, Machine Learning 8, eq. 11",
    linear=True,
    differs={
        "Fireworks 1.2.30": "its `reinforce` is importance sampling, -r A, whose KL term is computed from detached logprobs",
        "Tinker 0.38.0": "`stable_reinforce` is another loss, whose formula is not public",
    },
    laws=_LAWS,
)
def reinforce(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-A logprobs: the policy gradient, without a ratio.

    advantages   [T]  unitless; a token of advantage 0 still counts in the denominator
    returns      [T]  nats; its value has no meaning, only its gradient

    Valid only for tokens that the policy in training sampled itself; `importance_sampling` corrects for another sampler.

    When to use: Strictly on-policy training: every sample is used for one step, by the weights that sampled it. The
    simplest baseline.
    """
    return -advantages * logprobs


@register_loss(
    "gpg",
    per="token",
    reduction="token-mean",
    source="Chu et al. 2025, arXiv:2504.02546",
    linear=True,
    differs={
        "verl 0.9.1": "its advantages have another alpha, of the samples whose reward is not 0, and keep a group of one as it is"
    },
    laws={**_LAWS, "is_another_loss": {"loss": "reinforce"}},
)
def gpg(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-A logprobs with group-relative advantages, averaged over all tokens: no ratio, no clip, no reference.

    advantages   [T]  unitless, alpha (reward - group mean), as `lossbook.losses.advantages.gpg` gives them
    returns      [T]  nats; its value has no meaning, only its gradient

    Valid only for tokens that the policy in training sampled itself. The paper's alpha, samples over samples with a signal,
    makes up for groups of equal rewards; without it the loss is `reinforce`, token-mean.

    When to use: Strictly on-policy training with several samples per prompt, when nothing but the plain policy
    gradient is wanted.
    """
    return reinforce(logprobs, advantages)
