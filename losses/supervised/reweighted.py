"""Cross-entropy weighted by how likely the model already finds each token."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import stats
from ..registry import register_loss
from ..spec.settings import NonNegative
from ..stats import Stat

#: 1 - p is at least this, so that a power below 1 has a finite slope.
LEAST_DOUBT = 1e-30


@register_loss(
    "dft",
    per="token",
    reduction="token-mean",
    source="Wu et al. 2025, arXiv:2508.05629",
)
def dft(logprobs: Tensor) -> tuple[Tensor, dict[str, Stat]]:
    """-sg(p) logprobs, where p = exp(logprobs): dynamic fine-tuning; sg stops the gradient.

    logprobs   [T] or [T, K]  nats, of the target tokens under the policy in training
    returns    [T] or [T, K]  nats

    The gradient of cross-entropy is a policy gradient with reward 1/p at the target; the factor p cancels the 1/p. So a
    target that the model finds very unlikely teaches almost nothing: text far from the model's own is hardly learned.
    `probability` is the mean of p, and shows how much of cross-entropy's gradient is left.

    When to use: Fine-tuning on answers that the model finds plausible already, with poor ones among them: unlikely
    tokens hardly count. For text far from the model's own take cross_entropy.
    """
    probability = logprobs.detach().exp()
    return -probability * logprobs, {"probability": stats.mean(probability)}


@register_loss(
    "focal",
    per="token",
    reduction="token-mean",
    source="Lin et al. 2017, arXiv:1708.02002 eq. 4",
    laws={"is_another_loss": {"own": {"gamma": 0.0}, "loss": "cross_entropy"}},
)
def focal(logprobs: Tensor, *, gamma: NonNegative = 2.0) -> tuple[Tensor, dict[str, Stat]]:
    """-(1 - p)^gamma logprobs, where p = exp(logprobs): tokens that are already likely count less.

    logprobs   [T] or [T, K]  nats, of the target tokens under the policy in training
    returns    [T] or [T, K]  nats

    The factor has a gradient too, as in the paper. For gamma below 1 its slope is infinite at p = 1, so 1 - p is clamped to
    at least 1e-30. gamma = 0 is cross_entropy. `focal_factor` is the mean factor: near 0, most tokens are already learned,
    and few of them make up the loss.

    When to use: When most tokens are easy and the few hard ones should decide. Noisy labels are hard too, so clean the
    data first.
    """
    factor = (-torch.expm1(logprobs)).clamp(min=LEAST_DOUBT).pow(gamma)
    return -factor * logprobs, {"focal_factor": stats.mean(factor)}


@register_loss(
    "poly1",
    per="token",
    reduction="token-mean",
    source="Leng et al. 2022, arXiv:2204.12511",
    laws={"is_another_loss": {"own": {"epsilon": 0.0}, "loss": "cross_entropy"}},
)
def poly1(logprobs: Tensor, *, epsilon: NonNegative = 2.0) -> tuple[Tensor, dict[str, Stat]]:
    """-logprobs + epsilon (1 - p), where p = exp(logprobs): cross-entropy with a larger first term of its series in 1 - p.

    logprobs   [T] or [T, K]  nats, of the target tokens
    returns    [T] or [T, K]  nats plus epsilon times a probability

    The gradient is -(1 + epsilon p): unlike focal, it pushes likely tokens harder. epsilon = 0 is cross_entropy.
    `probability` is the mean of p.

    When to use: When cross_entropy learns likely tokens too slowly: one number to tune, and epsilon = 0 to fall back
    on.
    """
    probability = logprobs.exp()
    return -logprobs + epsilon * (1 - probability), {"probability": stats.mean(probability)}
