"""Losses of the margin in which the responses' lengths matter: means instead of sums, or a smaller weight of the longer's end."""

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
    differs={"TRL": "always per token in DPO and CPO, always summed in Online DPO and XPO"},
    claims={
        "value_at_reference": {"value": lambda beta, **_: 0.25 / beta**2},
        "swap_symmetry": {"slope": lambda beta, **_: 2 / beta},
        "repetition_changes_nothing": {"when": {"length_normalized": True}},
    },
)
def ipo(
    logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1, length_normalized: bool = True
) -> Returned:
    """(Δ - 1 / (2 beta))², where Δ is the difference of the responses' mean (or summed) logprobs - ref_logprobs.

    logprobs       [T]    nats, under the policy in training
    ref_logprobs   [T]    nats, under the frozen reference
    returns        [N/2]  nats², one loss a pair; 1 / (4 beta²) while policy and reference agree

    beta is the paper's τ. The paper's formula has sums; its authors' results are with means, so these are the default, and
    the target 1 / (2 beta) is one of nats a token. A pair past the target is pulled back. `margin` is Δ.
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
    claims={
        "value_at_reference": {"value": math.log(2)},
        "swap_symmetry": {"slope": lambda beta: beta},
        "repetition_changes_nothing": {},
    },
)
def sigmoid_norm(logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1) -> Returned:
    """-log σ(beta Δ), where Δ = mean_chosen (logprobs - ref_logprobs) - mean_rejected (logprobs - ref_logprobs).

    logprobs       [T]    nats, under the policy in training
    ref_logprobs   [T]    nats, under the frozen reference
    returns        [N/2]  nats, one loss a pair; ln 2 while policy and reference agree

    DPO on nats a token: long responses gain nothing by their length. Margins are smaller by that length, so beta is
    usually larger than DPO's. `margin` is Δ.
    """
    chosen, rejected = seqs.pairs(seqs.mean(logprobs - ref_logprobs))
    return -logsigmoid(beta * (chosen - rejected)), pair_stats(chosen, rejected, beta)


@register_loss(
    "ld_dpo",
    per="pair",
    reduction="pair-mean",
    source="Liu et al. 2024, arXiv:2409.06411",
    axes=AXES,
    differs={"TRL": "ld_alpha, a setting of its DPO losses, is off by default"},
    claims={
        "is_another_loss": {"own": {"alpha": 1.0}, "loss": "dpo"},
        "value_at_reference": {"value": math.log(2)},
        "swap_symmetry": {"slope": lambda beta, **_: beta},
        "shared_prefix_cancels": {},
    },
)
def ld_dpo(logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1, alpha: Share = 0.5) -> Returned:
    """-log σ(beta Δ), with DPO's Δ in which tokens beyond the shorter response's length count alpha times.

    logprobs       [T]    nats, under the policy in training
    ref_logprobs   [T]    nats, under the frozen reference
    returns        [N/2]  nats, one loss a pair; ln 2 while policy and reference agree

    alpha 1 is DPO; 0 cuts the longer response to the length of the shorter. Lengths count tokens of non-zero weight.
    `margin` and the rewards are of the sums so weighted.
    """
    ends = seqs.lengths.cumsum(0)
    places = torch.ones_like(seqs.index).cumsum(0) - seqs.broadcast(ends - seqs.lengths)  # 1, 2, ... in each response
    chosen_length, rejected_length = seqs.pairs(seqs.lengths)
    shorter = torch.minimum(chosen_length, rejected_length).repeat_interleave(2)
    is_shared = places <= seqs.broadcast(shorter)
    ratios = logprobs - ref_logprobs
    chosen, rejected = seqs.pairs(seqs.sum(torch.where(is_shared, ratios, alpha * ratios)))
    return -logsigmoid(beta * (chosen - rejected)), pair_stats(chosen, rejected, beta)
