"""Losses that compare distributions of scores over the batch: the k-th smallest of one against the k-th of the other."""

from __future__ import annotations

import math

from torch import Tensor

from ..batch.seqs import Seqs
from ..registry import register_loss
from ..spec.settings import Positive, Smoothing
from .common import AXES, Returned, log_ratios, pair_stats, smoothed_logistic


@register_loss(
    "aot",
    per="pair",
    couples="batch",
    reduction="pair-mean",
    source="Melnyk et al. 2024, arXiv:2406.05882, paired",
    axes=AXES,
    differs={"TRL 1.16.0": "sorts within a micro-batch"},
    laws={"value_at_reference": {"value": math.log(2)}, "shared_prefix_cancels": {}},
)
def aot(
    logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1, label_smoothing: Smoothing = 0.0
) -> Returned:
    """-log σ(beta δ_k), where δ_k = k-th smallest Σ_chosen - Σ_rejected of logprobs, less the same of ref_logprobs.

    returns   [N/2]  nats, one loss per rank k; ln 2 while policy and reference agree

    Sorted over all pairs of the batch, which must be seen together, so the loss depends on the batch size. Pairs with the
    same margin share their gradient, so their order does not matter. `margin` and `accuracy` are of the pairs themselves.

    When to use: Pairs of which only the two distributions matter: all chosen answers together should beat all rejected
    ones.
    """
    chosen, rejected = seqs.pairs(seqs.sum(logprobs))
    ref_chosen, ref_rejected = seqs.pairs(seqs.sum(ref_logprobs))
    lead = ascending(chosen - rejected) - ascending(ref_chosen - ref_rejected)
    losses = smoothed_logistic(beta * lead, label_smoothing)
    return losses, pair_stats(chosen - ref_chosen, rejected - ref_rejected, beta)


@register_loss(
    "aot_unpaired",
    per="pair",
    couples="batch",
    reduction="pair-mean",
    source="Melnyk et al. 2024, arXiv:2406.05882, unpaired",
    axes=AXES,
    differs={"TRL 1.16.0": "sorts within a micro-batch"},
    laws={"value_at_reference": {"value": math.log(2)}, "agreeing_tokens_are_silent": {}},
)
def aot_unpaired(
    logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1, label_smoothing: Smoothing = 0.0
) -> Returned:
    """-log σ(beta δ_k), where δ_k = k-th smallest Σ_chosen (logprobs - ref_logprobs), less the k-th smallest Σ_rejected.

    returns   [N/2]  nats, one loss per rank k; ln 2 while policy and reference agree

    Which chosen response is paired with which rejected one does not matter. Sorted over the batch, which must be seen
    together. Responses with the same sum share their gradient. `margin` and `accuracy` are of the pairs as given.

    When to use: Good and bad answers to different prompts, in equal number, with a reference model.
    """
    chosen, rejected = log_ratios(logprobs, ref_logprobs, seqs)
    losses = smoothed_logistic(beta * (ascending(chosen) - ascending(rejected)), label_smoothing)
    return losses, pair_stats(chosen, rejected, beta)


def ascending(values: Tensor) -> Tensor:
    """[P] sorted. Equal values share their gradient; torch.sort would give it to one of them by position."""
    fixed = values.detach()
    is_own = (fixed.sort().values[:, None] == fixed).to(values)  # [rank, value]
    return (is_own / is_own.sum(1, keepdim=True) * values).sum(1)
