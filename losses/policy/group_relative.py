"""GRPO and its descendants: the clipped surrogate with advantages relative to a group of samples of one prompt."""

from __future__ import annotations

from torch import Tensor

from .. import stats
from ..math.ratios import KLEstimator, kl_estimate
from ..registry import register_loss
from ..spec.axes import Axes
from ..spec.settings import LowerBound, NonNegative, UpperBound
from ..stats import Stat
from .clipped import PESSIMISTIC, DualClip, clipped_tokens

#: Laws of losses that are only PPO's clipped surrogate.
_LAWS = {
    "on_policy_is_reinforce": {},
    "is_another_loss": {"loss": "ppo"},
    "zero_advantage_is_silent": {},
    "beyond_the_clip_no_gradient": {"nats": 0.25},
}


def estimator_unread(kl_coefficient: float, kl_estimator: KLEstimator) -> str:
    """Why this estimator would change nothing, or ""."""
    if kl_coefficient or kl_estimator == "k3":
        return ""
    return f"kl_estimator={kl_estimator!r} is read only where kl_coefficient is not 0"


@register_loss(
    "grpo",
    per="token",
    reduction="token-mean",
    source="Shao et al. 2024, arXiv:2402.03300 eq. 3 and 4; token-mean: arXiv:2503.14476 eq. 8",
    required_if={"ref_logprobs": "kl_coefficient"},
    conflict=lambda settings: estimator_unread(settings["kl_coefficient"], settings["kl_estimator"]),
    axes=Axes(ratio="token", clip=PESSIMISTIC, kl="to the reference, k3 by default, differentiable"),
    differs={
        "Fireworks 1.2.30": "the managed service's loss is this one",
        "Fireworks cookbook 5922b31": "adds up tokens",
        "TRL 1.16.0": "no KL unless beta is set, mean over sequences of token means, no cap on log-ratios; 'dapo' is its default",
        "verl 0.9.1": "no KL unless it is turned on (k3, clamped at ±20 and ±10), and a dual clip at 3 always",
        "SkyRL 0.3.0": "clamps k3 at ±20 and ±10",
        "Tinker 0.38.0": "has no such loss: a KL penalty is put into the advantages of `ppo` or `importance_sampling`",
    },
    laws={
        "on_policy_is_reinforce": {},
        "is_another_loss": {"own": {"kl_coefficient": 0.0}, "loss": "ppo"},
    },
)
def grpo(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    ref_logprobs: Tensor | None = None,
    *,
    clip_low: LowerBound = 0.8,
    clip_high: UpperBound = 1.2,
    kl_coefficient: NonNegative = 0.001,
    kl_estimator: KLEstimator = "k3",
) -> tuple[Tensor, dict[str, Stat]]:
    """-min(r A, clip(r) A) + kl_coefficient KL(policy || reference), with group-relative advantages.

    advantages     [T]  unitless, usually (reward - group mean) / group deviation
    ref_logprobs   [T]  nats, under a frozen reference; needed unless kl_coefficient is 0
    returns        [T]  unitless

    The KL term is differentiable and estimated per token (see `kl_estimate` for its gradient).

    When to use: Rewards that can be checked, several samples per prompt, no value function, and a reference to stay
    near to. kl_coefficient = 0 does without the reference.
    """
    losses, metrics = clipped_tokens(logprobs, sampling_logprobs, advantages, clip_low, clip_high)
    if ref_logprobs is None:  # keep the metric, as a mean of no values: a rank without data has no reference either
        return losses, {**metrics, "ref_kl": stats.mean(logprobs.new_zeros(0))}
    divergence = kl_estimate(logprobs, ref_logprobs, kl_estimator, sampling_logprobs)
    return losses + kl_coefficient * divergence, {**metrics, "ref_kl": stats.mean(divergence)}


@register_loss(
    "dapo",
    per="token",
    reduction="token-mean",
    source="Yu et al. 2025, arXiv:2503.14476 eq. 8; dual_clip: Ye et al. 2019, arXiv:1912.09729",
    axes=Axes(ratio="token", clip=PESSIMISTIC),
    differs={
        "Fireworks 1.2.30": "the managed service's loss is this one",
        "Fireworks cookbook 5922b31": "adds up tokens",
        "TRL 1.16.0": "loss_type 'dapo' is the token-mean alone: epsilon_high stays at 0.2 unless set to 0.28",
        "verl 0.9.1": "`vanilla` with clip_ratio_high=0.28, and a dual clip at 3 always",
    },
    laws={**_LAWS, "is_another_loss": {"loss": "ppo", "settings": {"clip_high": 1.28}}},
)
def dapo(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: LowerBound = 0.8,
    clip_high: UpperBound = 1.28,
    dual_clip: DualClip | None = None,
) -> tuple[Tensor, dict[str, Stat]]:
    """-min(r A, clip(r) A), where r = exp(logprobs - sampling_logprobs), with more room above 1 than below.

    advantages   [T]  unitless, usually (reward - group mean) / group deviation
    returns      [T]  unitless

    No KL term. With `dual_clip` a token of A < 0 has no gradient once r exceeds it. The paper's other parts, overlong
    rewards and dropping groups of equal rewards, are done in the data.

    When to use: Long chains of thought with rewards that can be checked, when entropy collapses under ppo's or grpo's
    symmetric clip.
    """
    return clipped_tokens(logprobs, sampling_logprobs, advantages, clip_low, clip_high, dual_clip)


@register_loss(
    "dr_grpo",
    per="token",
    reduction="seq-mean-token-sum-norm",
    source="Liu et al. 2025, arXiv:2503.20783 section 3.2",
    axes=Axes(ratio="token", clip=PESSIMISTIC),
    differs={
        "TRL 1.16.0": "norm_length is max_completion_length; scale_rewards='none' has to be set beside it",
        "verl 0.9.1": "norm_length is `loss_scale_factor`, by default the length to which responses of the batch are padded",
        "SkyRL 0.3.0": "norm_length is max_seq_len, which has to be set",
    },
    laws=_LAWS,
)
def dr_grpo(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: LowerBound = 0.8,
    clip_high: UpperBound = 1.2,
) -> tuple[Tensor, dict[str, Stat]]:
    """-min(r A, clip(r) A), where r = exp(logprobs - sampling_logprobs), divided by a constant length instead of each response's own.

    advantages   [T]  unitless: reward - group mean, not divided by a deviation
    returns      [T]  unitless

    Dividing a sequence by its own length favours short right answers and long wrong ones; `norm_length`, which is required,
    is the same for all. Advantages divided by the group's deviation would bring back the paper's other bias.

    When to use: As grpo, when responses grow longer without becoming better: it removes the bias by length.
    """
    return clipped_tokens(logprobs, sampling_logprobs, advantages, clip_low, clip_high)


@register_loss(
    "bnpo",
    per="token",
    reduction="token-mean",
    source="TRL's loss_type 'bnpo'; not the Beta normalisation of the paper of that name, arXiv:2506.02864",
    axes=Axes(ratio="token", clip=PESSIMISTIC),
    differs={"TRL 1.16.0": "takes the token-mean over each micro-batch, so that the split of a batch changes the loss"},
    laws={
        **_LAWS,
        "is_another_loss": [{"loss": "ppo"}, {"loss": "grpo", "settings": {"kl_coefficient": 0.0}}],
    },
)
def bnpo(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: LowerBound = 0.8,
    clip_high: UpperBound = 1.2,
) -> tuple[Tensor, dict[str, Stat]]:
    """-min(r A, clip(r) A), where r = exp(logprobs - sampling_logprobs): GRPO without a KL term, averaged over all tokens.

    advantages   [T]  unitless, usually (reward - group mean) / group deviation
    returns      [T]  unitless

    When to use: As grpo without a reference, when every token should weigh the same, whatever the length of its
    response.
    """
    return clipped_tokens(logprobs, sampling_logprobs, advantages, clip_low, clip_high)
