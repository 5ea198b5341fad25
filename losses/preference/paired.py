"""Losses of the margin: how much more the policy has raised the chosen response than the rejected one."""

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

#: The default of dpo's alpha.
ALPHA = 0.5


def alpha_unread(divergence: Divergence, alpha: float) -> str:
    """Why this alpha would change nothing, or ""."""
    return "" if divergence == "alpha" or alpha == ALPHA else f"alpha={alpha:g} is read only with divergence='alpha'"


@register_loss(
    "dpo",
    per="pair",
    reduction="pair-mean",
    source="Rafailov et al. 2023, arXiv:2305.18290 eq. 7; label_smoothing: Mitchell 2023, conservative DPO; "
    "divergence: Wang et al. 2023, arXiv:2309.16240",
    axes=AXES,
    conflict=lambda settings: alpha_unread(settings["divergence"], settings["alpha"]),
    differs={
        "TRL 1.16.0": "its sigmoid loss has no label smoothing, and its forward-KL score is not capped",
        "Tinker 0.38.0": "its metric margin is scaled by beta",
        "Fireworks cookbook 0a09c10": "sums the response without its tokens' weights",
    },
    laws={
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
    alpha: Positive = ALPHA,
) -> Returned:
    """-log σ(beta Δ), where Δ = Σ_chosen (logprobs - ref_logprobs) - Σ_rejected (logprobs - ref_logprobs).

    returns   [N/2]  nats, one loss per pair; ln 2 while policy and reference agree

    Sums are over the response, tokens weighted by their weights. `margin` is Δ in nats, not scaled by beta;
    `chosen_reward` and `rejected_reward` are scaled. With label_smoothing ε the loss is
    -(1 - ε) log σ(beta Δ) - ε log σ(-beta Δ). With a divergence other than the reverse KL, each sum x becomes a score before
    the difference: forward_kl 1 - exp(-x), js log 2 + log σ(x), alpha (exp((alpha - 1) x) - 1) / (alpha - 1). Exponents are
    capped at 80; `score_capped` counts the responses beyond, which have no gradient. To keep chosen responses likely, add
    `chosen_nll`: cross_entropy would raise the rejected ones too.

    When to use: The default for pairs of answers with a reference model; begin here.
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
    laws={"shared_prefix_cancels": {}, "agreeing_tokens_are_silent": {}},
)
def margin_dpo(
    logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, margin: PerDatum, *, beta: Positive = 0.1
) -> Returned:
    """-log σ(beta Δ - margin), where Δ = Σ_chosen (logprobs - ref_logprobs) - Σ_rejected (logprobs - ref_logprobs).

    margin    [N]    nats, the wanted lead of beta Δ; a pair uses its chosen datum's
    returns   [N/2]  nats, one loss per pair

    The rejected datum's margin is required but not read. While policy and reference agree, a pair's loss is
    log(1 + exp(margin)). `shortfall` is the share of pairs that have not reached their margin.

    When to use: Pairs that come with how much better the chosen answer is, such as a difference of ratings.
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
    laws={
        "value_at_reference": {"value": 1.0},
        "swap_symmetry": {},
        "shared_prefix_cancels": {},
        "agreeing_tokens_are_silent": {},
    },
)
def hinge(logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1) -> Returned:
    """max(0, 1 - beta Δ), where Δ = Σ_chosen (logprobs - ref_logprobs) - Σ_rejected (logprobs - ref_logprobs).

    returns   [N/2]  unitless, one loss per pair; 1 while policy and reference agree

    A pair whose Δ is at least 1 / beta nats has no gradient; `satisfied` is the share of these.

    When to use: As dpo, when pairs that are already told apart should have no gradient at all.
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
    differs={"TRL 1.16.0": "label_smoothing is 0 by default, which is plain DPO"},
    laws={
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

    returns   [N/2]  nats, one loss per pair; ln 2 while policy and reference agree

    If a share ε of the pairs is swapped, its expected value is DPO's on the right order. It has no lower bound as the margin
    of a pair grows, so values below 0 are normal: the slope tends to -ε beta / (1 - 2 ε).

    When to use: Pairs of which a known share is labelled the wrong way round.
    """
    chosen, rejected = log_ratios(logprobs, ref_logprobs, seqs)
    logits = beta * (chosen - rejected)
    as_given, swapped = -logsigmoid(logits), -logsigmoid(-logits)
    losses = ((1 - label_smoothing) * as_given - label_smoothing * swapped) / (1 - 2 * label_smoothing)
    return losses, pair_stats(chosen, rejected, beta)


@register_loss(
    "exo_pair",
    per="pair",
    reduction="pair-mean",
    source="Ji et al. 2024, arXiv:2402.00856 eq. 16",
    axes=AXES,
    differs={"TRL 1.16.0": "label_smoothing is 0 by default, which its trainer refuses"},
    laws={
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

    returns   [N/2]  nats, one loss per pair: KL of the policy's preference from (1 - ε, ε)

    The KL is KL(policy || label), so a pair with a very negative margin has hardly a gradient. Its minimum, 0, is at
    beta Δ = log(1 / ε - 1); a pair beyond that is pulled back.

    When to use: As dpo, when a few very wrong pairs should not dominate the gradient.
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
    differs={"TRL 1.16.0": "takes exp and the mixing share apart, which overflow to NaN for a pair lost by far"},
    laws={
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

    returns   [N/2]  unitless, one loss per pair; (1 + ln 2) / 2 while policy and reference agree

    Pairs with z < 0 have the logistic loss, pairs with z > 0 the exponential one. It is not convex: between the two, near
    z = 0, it has a bump of width tau. g exp(-z) is computed as exp(log g - z), capped at exp(80).

    When to use: As dpo, to try a loss that was found by search; it is not convex, so sweep beta and the seed.
    """
    chosen, rejected = log_ratios(logprobs, ref_logprobs, seqs)
    logits = beta * (chosen - rejected)
    logistic = -torch.sigmoid(-logits / tau) * logsigmoid(logits)
    exponential = capped_exponent(logsigmoid(logits / tau) - logits).exp()
    return logistic + exponential, pair_stats(chosen, rejected, beta)
