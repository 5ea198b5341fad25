"""Losses over the model's whole distribution, not only its target tokens."""

from __future__ import annotations

from torch import Tensor

from .. import stats
from ..registry import register_loss
from ..spec.settings import Positive, Share
from ..stats import Stat


@register_loss(
    "label_smoothing",
    per="token",
    reduction="sum",
    source="Szegedy et al. 2015, arXiv:1512.00567 section 7",
    differs={
        "TRL 1.16.0": "epsilon is 0 by default (`label_smoothing_factor`), and the mean is over tokens (token-mean)"
    },
    laws={"is_another_loss": {"own": {"epsilon": 0.0}, "loss": "cross_entropy"}},
)
def label_smoothing(logprobs: Tensor, mean_logprobs: Tensor, *, epsilon: Share = 0.1) -> tuple[Tensor, dict[str, Stat]]:
    """-(1 - epsilon) logprobs - epsilon mean_logprobs: cross-entropy with label 1 - epsilon, the rest spread evenly.

    logprobs        [T] or [T, K]  nats, of the target tokens under the policy in training
    mean_logprobs   [T] or [T, K]  nats, the mean over all V tokens of the vocabulary
    returns         [T] or [T, K]  nats

    The target is one of the V tokens that share epsilon, so its label is 1 - epsilon + epsilon / V, as in torch and
    transformers; fairseq spreads epsilon over the V - 1 others. The smallest value is the entropy of the smoothed labels,
    not 0. `uniform_nll` is the mean of -mean_logprobs: it grows as the model rules tokens out. It is infinite for a model
    that masks part of its vocabulary, which therefore cannot use label smoothing.

    When to use: When the model becomes overconfident, or its probabilities are used as such. Usual in translation;
    rare in fine-tuning of chat models.
    """
    losses = -(1 - epsilon) * logprobs - epsilon * mean_logprobs
    return losses, {"uniform_nll": stats.mean(-mean_logprobs)}


@register_loss(
    "z_loss",
    per="token",
    reduction="sum",
    source="Chowdhery et al. 2022, arXiv:2204.02311 section 5",
)
def z_loss(logsumexp: Tensor, *, coefficient: Positive = 1e-4) -> tuple[Tensor, dict[str, Stat]]:
    """coefficient logsumexp².

    Auxiliary, to be added to another loss: get_loss("cross_entropy") + get_loss("z_loss").

    logsumexp   [T] or [T, K]  nats, log Σ_v exp(logit_v): the logarithm of the softmax's denominator
    returns     [T] or [T, K]  nats²

    Shifting all logits does not change the softmax. This loss depends only on that shift: it pulls the logsumexp of the
    logits to 0, where bfloat16 is most precise. It reads no target, so it teaches nothing alone. Give it the reduction of
    the loss that it is added to. `logsumexp_max` warns when logits drift away from 0.

    When to use: Long runs or large learning rates in bfloat16, when logits drift and training becomes unstable.
    """
    metrics = {"logsumexp": stats.mean(logsumexp), "logsumexp_max": stats.max(logsumexp.abs())}
    return coefficient * logsumexp.square(), metrics
