"""Losses of a margin that accounts for length: means instead of sums, or less weight on the longer response's end."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..batch.seqs import Seqs
from ..registry import register_loss
from ..spec.settings import Positive, Share
from .common import AXES, Returned, pair_stats


@register_loss(
    "ipo",
    per="pair",
    reduction="pair-mean",
    source="Azar et al. 2023, arXiv:2310.12036 eq. 17",
    axes=AXES,
    differs={"TRL 1.16.0": "always per token in DPO and CPO, always summed in Online DPO and XPO"},
    laws={
        "value_at_reference": {"value": lambda beta, **_: 0.25 / beta**2},
        "swap_symmetry": {"slope": lambda beta, **_: 2 / beta},
        "repetition_changes_nothing": {"when": {"length_normalized": True}},
    },
)
def ipo(
    logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1, length_normalized: bool = True
) -> Returned:
    """(Δ - 1 / (2 beta))², where Δ is the difference of the responses' mean (or summed) logprobs - ref_logprobs.

    returns   [N/2]  nats², one loss per pair; 1 / (4 beta²) while policy and reference agree

    beta is the paper's τ. The paper's formula has sums, but its results are with means, so means are the default, and the
    target 1 / (2 beta) is in nats per token. A pair beyond the target is pulled back. `margin` is Δ.

    When to use: Pairs that agree nearly always, with which dpo overfits: the margin has a target instead of growing
    without bound.
    """
    gather = seqs.mean if length_normalized else seqs.sum
    chosen, rejected = seqs.pairs(gather(logprobs - ref_logprobs))
    return (chosen - rejected - 0.5 / beta).square(), pair_stats(chosen, rejected, beta)


@register_loss(
    "sigmoid_norm",
    per="pair",
    reduction="pair-mean",
    source="Lambert et al. 2024, arXiv:2411.15124",
    axes=AXES,
    laws={
        "value_at_reference": {"value": math.log(2)},
        "swap_symmetry": {"slope": lambda beta: beta},
        "repetition_changes_nothing": {},
    },
)
def sigmoid_norm(logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1) -> Returned:
    """-log σ(beta Δ), where Δ = mean_chosen (logprobs - ref_logprobs) - mean_rejected (logprobs - ref_logprobs).

    returns   [N/2]  nats, one loss per pair; ln 2 while policy and reference agree

    DPO in nats per token, so that a response gains nothing by its length. Margins are divided by the length, so beta is
    usually larger than in DPO. `margin` is Δ.

    When to use: As dpo, when the policy learns to write longer: rewards are per token.
    """
    chosen, rejected = seqs.pairs(seqs.mean(logprobs - ref_logprobs))
    return -logsigmoid(beta * (chosen - rejected)), pair_stats(chosen, rejected, beta)


@register_loss(
    "ld_dpo",
    per="pair",
    reduction="pair-mean",
    source="Liu et al. 2024, arXiv:2409.06411",
    axes=AXES,
    differs={"TRL 1.16.0": "ld_alpha, a setting of its DPO losses, is off by default"},
    laws={
        "is_another_loss": {"own": {"alpha": 1.0}, "loss": "dpo"},
        "value_at_reference": {"value": math.log(2)},
        "swap_symmetry": {"slope": lambda beta, **_: beta},
        "shared_prefix_cancels": {},
        "repeats": "a token counts for less beyond the length of the shorter response",
    },
)
def ld_dpo(logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1, alpha: Share = 0.5) -> Returned:
    """-log σ(beta Δ), with DPO's Δ in which tokens beyond the shorter response's length are multiplied by alpha.

    returns   [N/2]  nats, one loss per pair; ln 2 while policy and reference agree

    alpha = 1 is DPO; alpha = 0 cuts the longer response to the length of the shorter. Lengths count tokens of non-zero
    weight. `margin` and the rewards use the sums with this weighting.

    When to use: As dpo, when chosen answers are longer than rejected ones and length is learned instead of quality.
    """
    ends = seqs.lengths.cumsum(0)
    places = torch.ones_like(seqs.index).cumsum(0) - seqs.broadcast(ends - seqs.lengths)  # 1, 2, ... in each response
    chosen_length, rejected_length = seqs.pairs(seqs.lengths)
    shorter = torch.minimum(chosen_length, rejected_length).repeat_interleave(2)
    is_shared = places <= seqs.broadcast(shorter)
    ratios = logprobs - ref_logprobs
    chosen, rejected = seqs.pairs(seqs.sum(torch.where(is_shared, ratios, alpha * ratios)))
    return -logsigmoid(beta * (chosen - rejected)), pair_stats(chosen, rejected, beta)
