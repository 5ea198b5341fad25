"""Cross-entropy weighted by how undecided the model is at each position."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .. import stats
from ..registry import register_loss
from ..spec.settings import AtLeastOne, NonNegative
from ..stats import Stat


def _has_entropy(settings: Mapping[str, Any]) -> str:
    return "" if settings["top_k"] > 1 else "top_k=1: a single token has no entropy, so nothing would be learned"


@register_loss(
    "eaft",
    per="token",
    reduction="token-mean",
    source="Diao et al. 2026, arXiv:2601.02151",
    conflict=_has_entropy,
    differs={
        "axolotl 0.19.0": "the entropy is not divided by ln K: with K = 20 and alpha = 1 the loss is 3.00 times ours; 1e-10 is "
        "added inside its logarithm",
        "LLaMA-Factory 0.9.5": "the entropy is divided by 3 in place of ln 20 = 2.996, and K is 20",
    },
    laws={"is_another_loss": {"own": {"alpha": 0.0}, "loss": "cross_entropy"}},
)
def eaft(
    logprobs: Tensor, topk_logprobs: Tensor, *, alpha: NonNegative = 1.0, top_k: AtLeastOne = 20
) -> tuple[Tensor, dict[str, Stat]]:
    """-sg(H / ln K)^alpha logprobs, where H is the entropy of the K likeliest tokens: entropy-adaptive fine-tuning.

    logprobs        [T]     nats, of the target tokens under the policy in training
    topk_logprobs   [T, K]  nats, K = top_k
    returns         [T]     nats

    The K probabilities are divided by their sum, so H lies between 0 and ln K and the weight between 0 and 1; sg stops the
    gradient. A target that is unlikely where the model is sure (H near 0) contradicts what the model knows, and hardly counts;
    where the model is undecided, it counts in full. alpha = 0 is cross_entropy. `entropy_weight` is the mean weight: how much of
    cross-entropy's gradient is left. `topk_mass` is the mean of the K probabilities' sum: near 1, H is nearly the whole entropy.

    When to use: Fine-tuning on a new domain without forgetting what the model knows. People watch a benchmark of general abilities
    beside the held-out loss. Not for correcting what a model is sure of: take cross_entropy for that.
    """
    best = topk_logprobs.detach()
    shares = best.log_softmax(-1)
    entropy = -(shares.exp() * shares).sum(-1)
    weight = (entropy / math.log(top_k)).clamp(0, 1).pow(alpha)
    return -weight * logprobs, {"entropy_weight": stats.mean(weight), "topk_mass": stats.mean(best.exp().sum(-1))}
