"""Losses of the margin: by how much more the policy has raised the chosen response than the rejected one."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .. import stats
from ..batch.seqs import Seqs
from ..registry import register_loss
from ..spec.settings import Positive, PositiveSmoothing, Smoothing
from ..spec.spec import PerDatum
from .common import (
    AXES,
    Divergence,
    Returned,
    capped_exponent,
    divergence_score,
    log_ratios,
    pair_stats,
    smoothed_logistic,
)


@register_loss(
    "dpo",
    per="pair",
    reduction="pair-mean",
    source="Rafailov et al. 2023, arXiv:2305.18290 eq. 7; label_smoothing: Mitchell 2023, conservative DPO; "
    "divergence: Wang et al. 2023, arXiv:2309.16240",
    axes=AXES,
    differs={
        "TRL": "its sigmoid loss has no label smoothing, and its forward-KL score is not capped",
        "Tinker": "its metric margin is scaled by beta",
        "Fireworks": "sums the response without its tokens' weights",
    },
    claims={
        "value_at_reference": {"value": math.log(2)},
        "swap_symmetry": {"slope": lambda beta, label_smoothing, **_: beta * (1 - 2 * label_smoothing)},
        "shared_prefix_cancels": {"when": {"divergence": "reverse_kl"}},
        "agreeing_tokens_are_silent": {},
    },
)
def dpo(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    seqs: Seqs,
    *,
    beta: Positive = 0.1,
    label_smoothing: Smoothing = 0.0,
    divergence: Divergence = "reverse_kl",
    alpha: Positive = 0.5,
) -> Returned:
    """-log σ(beta Δ), where Δ = Σ_chosen (logprobs - ref_logprobs) - Σ_rejected (logprobs - ref_logprobs).

    logprobs       [T]    nats, under the policy in training
    ref_logprobs   [T]    nats, under the frozen reference
    returns        [N/2]  nats, one loss a pair; ln 2 while policy and reference agree

    Sums are over the response, tokens weighted by their weights. `margin` is Δ in nats, not scaled by beta;
    `chosen_reward` and `rejected_reward` are scaled. With label_smoothing ε the loss is
    -(1 - ε) log σ(beta Δ) - ε log σ(-beta Δ). With another divergence than the reverse KL either sum x becomes a score before
    the difference is taken: forward_kl 1 - exp(-x), js log 2 + log σ(x), alpha (exp((alpha - 1) x) - 1) / (alpha - 1).
    Exponents are capped at 80; `score_capped` counts the responses beyond, which have no gradient.
    """
    ratios = log_ratios(logprobs, ref_logprobs, seqs)
    (chosen, high), (rejected, low) = (divergence_score(ratio, divergence, alpha) for ratio in ratios)
    losses = smoothed_logistic(beta * (chosen - rejected), label_smoothing)
    return losses, {**pair_stats(chosen, rejected, beta), "score_capped": stats.sum(torch.cat([high, low]))}


@register_loss(
    "margin_dpo",
    per="pair",
    reduction="pair-mean",
    source="Amini et al. 2024, arXiv:2402.10571",
    aliases=["odpo"],
    axes=AXES,
    claims={"shared_prefix_cancels": {}, "agreeing_tokens_are_silent": {}},
)
def margin_dpo(
    logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, margin: PerDatum, *, beta: Positive = 0.1
) -> Returned:
    """-log σ(beta Δ - margin), where Δ = Σ_chosen (logprobs - ref_logprobs) - Σ_rejected (logprobs - ref_logprobs).

    logprobs       [T]    nats, under the policy in training
    ref_logprobs   [T]    nats, under the frozen reference
    margin         [N]    nats, by how much the scaled margin should win; a pair's is its chosen datum's
    returns        [N/2]  nats, one loss a pair

    The rejected datum's margin is not read, but must be there. While policy and reference agree, a pair's loss is
    log(1 + exp(margin)). `shortfall` is the share of pairs that have not reached their margin.
    """
    chosen, rejected = log_ratios(logprobs, ref_logprobs, seqs)
    logits = beta * (chosen - rejected) - seqs.pairs(margin)[0]
    return -logsigmoid(logits), {**pair_stats(chosen, rejected, beta), "shortfall": stats.mean(logits < 0)}


@register_loss(
    "hinge",
    per="pair",
    reduction="pair-mean",
    source="Zhao et al. 2023, arXiv:2305.10425; of log-ratios: Liu et al. 2023, arXiv:2309.06657",
    axes=AXES,
    claims={
        "value_at_reference": {"value": 1.0},
        "swap_symmetry": {},
        "shared_prefix_cancels": {},
        "agreeing_tokens_are_silent": {},
    },
)
def hinge(logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1) -> Returned:
    """max(0, 1 - beta Δ), where Δ = Σ_chosen (logprobs - ref_logprobs) - Σ_rejected (logprobs - ref_logprobs).

    logprobs       [T]    nats, under the policy in training
    ref_logprobs   [T]    nats, under the frozen reference
    returns        [N/2]  unitless, one loss a pair; 1 while policy and reference agree

    A pair whose Δ is 1 / beta nats or more has no gradient; `satisfied` is the share of these.
    """
    chosen, rejected = log_ratios(logprobs, ref_logprobs, seqs)
    losses = torch.relu(1 - beta * (chosen - rejected))
    return losses, {**pair_stats(chosen, rejected, beta), "satisfied": stats.mean(losses == 0)}


@register_loss(
    "robust",
    per="pair",
    reduction="pair-mean",
    source="Chowdhury et al. 2024, arXiv:2403.00409",
    axes=AXES,
    differs={"TRL": "label_smoothing is 0 by default, which is plain DPO"},
    claims={
        "is_another_loss": {"own": {"label_smoothing": 0.0}, "loss": "dpo"},
        "value_at_reference": {"value": math.log(2)},
        "swap_symmetry": {"slope": lambda beta, label_smoothing: beta / (1 - 2 * label_smoothing)},
        "shared_prefix_cancels": {},
        "agreeing_tokens_are_silent": {},
    },
)
def robust(
    logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1, label_smoothing: Smoothing = 0.1
) -> Returned:
    """(-(1 - ε) log σ(beta Δ) + ε log σ(-beta Δ)) / (1 - 2 ε), with DPO's Δ and ε = label_smoothing.

    logprobs       [T]    nats, under the policy in training
    ref_logprobs   [T]    nats, under the frozen reference
    returns        [N/2]  nats, one loss a pair; ln 2 while policy and reference agree

    Where a share ε of the pairs is the wrong way round, its mean is DPO's on the right order. It falls without bound as a
    pair wins: below 0 is no mistake. A pair keeps the slope ε beta / (1 - 2 ε) however far it has won.
    """
    chosen, rejected = log_ratios(logprobs, ref_logprobs, seqs)
    logits = beta * (chosen - rejected)
    as_given, turned_round = -logsigmoid(logits), -logsigmoid(-logits)
    losses = ((1 - label_smoothing) * as_given - label_smoothing * turned_round) / (1 - 2 * label_smoothing)
    return losses, pair_stats(chosen, rejected, beta)


@register_loss(
    "exo_pair",
    per="pair",
    reduction="pair-mean",
    source="Ji et al. 2024, arXiv:2402.00856 eq. 16",
    axes=AXES,
    differs={"TRL": "label_smoothing is 0 by default, which its trainer refuses"},
    claims={
        "value_at_reference": {
            "value": lambda label_smoothing, **_: (
                -math.log(2) - 0.5 * math.log(label_smoothing) - 0.5 * math.log1p(-label_smoothing)
            )
        },
        "swap_symmetry": {},
        "shared_prefix_cancels": {},
        "agreeing_tokens_are_silent": {},
    },
)
def exo_pair(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    seqs: Seqs,
    *,
    beta: Positive = 0.1,
    label_smoothing: PositiveSmoothing = 0.001,
) -> Returned:
    """q log(q / (1 - ε)) + (1 - q) log((1 - q) / ε), where q = σ(beta Δ), with DPO's Δ and ε = label_smoothing.

    logprobs       [T]    nats, under the policy in training
    ref_logprobs   [T]    nats, under the frozen reference
    returns        [N/2]  nats, one loss a pair: KL of the policy's preference from (1 - ε, ε)

    The KL is that from policy to label, so a pair that is lost by far has hardly a gradient. Its least value, 0, is at
    beta Δ = log(1 / ε - 1); a pair beyond that is pulled back.
    """
    chosen, rejected = log_ratios(logprobs, ref_logprobs, seqs)
    logits = beta * (chosen - rejected)
    won = torch.sigmoid(logits) * (logsigmoid(logits) - math.log1p(-label_smoothing))
    lost = torch.sigmoid(-logits) * (logsigmoid(-logits) - math.log(label_smoothing))
    return won + lost, pair_stats(chosen, rejected, beta)


@register_loss(
    "discopop",
    per="pair",
    reduction="pair-mean",
    source="Lu et al. 2024, arXiv:2406.08414 eq. 5",
    axes=AXES,
    differs={"TRL": "takes exp and the mixing share apart, which overflow to NaN for a pair lost by far"},
    claims={
        "value_at_reference": {"value": 0.5 * math.log(2) + 0.5},
        "swap_symmetry": {},
        "shared_prefix_cancels": {},
        "agreeing_tokens_are_silent": {},
    },
)
def discopop(
    logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1, tau: Positive = 0.05
) -> Returned:
    """-(1 - g) log σ(z) + g exp(-z), where z = beta Δ with DPO's Δ, and g = σ(z / tau).

    logprobs       [T]    nats, under the policy in training
    ref_logprobs   [T]    nats, under the frozen reference
    returns        [N/2]  unitless, one loss a pair; (1 + ln 2) / 2 while policy and reference agree

    Lost pairs have the logistic loss, won ones the exponential one. It is not convex: between them, near z = 0, it has a
    rise of width tau. g exp(-z) is computed as exp(log g - z), capped at exp(80).
    """
    chosen, rejected = log_ratios(logprobs, ref_logprobs, seqs)
    logits = beta * (chosen - rejected)
    logistic = -torch.sigmoid(-logits / tau) * logsigmoid(logits)
    exponential = capped_exponent(logsigmoid(logits / tau) - logits).exp()
    return logistic + exponential, pair_stats(chosen, rejected, beta)
