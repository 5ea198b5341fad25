"""A loss of pairs weighted by how likely the policy is to give them: off-policy pairs that it would hardly write count for little."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from .. import stats
from ..batch.seqs import Seqs
from ..registry import register_loss
from ..spec.settings import AtLeastOne, Positive, Smoothing
from .common import AXES, Returned, log_ratios, pair_stats, smoothed_logistic

WeightAlignment = Literal["sampled", "greedy", "none"]
#: The default of wpo's top_k.
TOP_K = 20


def top_unread(settings: Mapping[str, Any]) -> str:
    """Why wpo's top_k would change nothing, or ""."""
    if settings["alignment"] == "sampled" or settings["top_k"] == TOP_K:
        return ""
    return f"top_k={settings['top_k']} is read only with alignment='sampled'"


@register_loss(
    "wpo",
    per="pair",
    reduction="pair-mean",
    source="Zhou et al. 2024, arXiv:2406.11827 eq. 2, with sampled or greedy alignment of the weights",
    axes=AXES,
    conflict=top_unread,
    differs={
        "TRL 1.16.0": "use_weighting, a setting of its DPO losses: the sum of squares is over the whole vocabulary; no label smoothing",
        "open-instruct 2025-08": "its wpo is alignment 'none'",
    },
    laws={"swap_symmetry": {}},
)
def wpo(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    topk_logprobs: Tensor,
    seqs: Seqs,
    *,
    beta: Positive = 0.1,
    label_smoothing: Smoothing = 0.0,
    alignment: WeightAlignment = "sampled",
    top_k: AtLeastOne = TOP_K,
) -> Returned:
    """-w log σ(beta Δ), with DPO's Δ and w = exp(mean_chosen a + mean_rejected a), where a = logprobs - log Σ_k p_k².

    returns   [N/2]  nats, one loss per pair; w ln 2 while policy and reference agree

    w has no gradient. p_k are the policy's probabilities at a position, so that a is 0 on average for an answer that it
    sampled ("sampled"); with alignment "greedy" a = logprobs - max_k log p_k, 0 for its greedy answer, and with "none"
    a = logprobs. The sum is over the top_k likeliest tokens, all others together add at most p_K times their probability.
    With label_smoothing ε the logistic loss is -(1 - ε) log σ(beta Δ) - ε log σ(-beta Δ). `pair_weight` is the mean of w,
    `top_mass` the mean probability of the top_k tokens: below 0.9 choose more.

    When to use: As dpo, with pairs of other models' answers: each pair counts as much as the policy is likely to write
    it. Watch `pair_weight`: where it is near 0, the pairs are too far from the policy to teach it.
    """
    top_k_mass = topk_logprobs.exp().sum(-1)
    if alignment == "sampled":
        aligned = logprobs - torch.logsumexp(2 * topk_logprobs, -1)
    else:
        aligned = logprobs - topk_logprobs[..., 0] if alignment == "greedy" else logprobs
    likely, rejected_likely = seqs.pairs(seqs.mean(aligned.detach()))
    weight = (likely + rejected_likely).exp()
    chosen, rejected = log_ratios(logprobs, ref_logprobs, seqs)
    losses = weight * smoothed_logistic(beta * (chosen - rejected), label_smoothing)
    return losses, {
        **pair_stats(chosen, rejected, beta),
        "pair_weight": stats.mean(weight),
        "top_mass": stats.mean(top_k_mass),
    }
