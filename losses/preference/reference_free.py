"""Losses without a reference: the score is the policy's own logprobs, with a likelihood term or a target margin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .. import stats
from ..batch.seqs import Seqs
from ..registry import register_loss
from ..spec.settings import NonNegative, Positive, Smoothing
from .common import MAX_EXPONENT, Returned, capped_exponent, pair_stats, smoothed_logistic

#: Least distance of a mean logprob from 0, where the log-odds have a pole.
LEAST_NATS = 1e-6
#: The default of tpo's gamma.
GAMMA = 0.5


@register_loss(
    "simpo",
    per="pair",
    reduction="pair-mean",
    source="Meng et al. 2024, arXiv:2405.14734 eq. 6",
    differs={"TRL 1.16.0": "beta 0.1 and gamma 0.5 by default, and adds CPO's likelihood term unless cpo_alpha is 0"},
    laws={"swap_symmetry": {}, "repetition_changes_nothing": {}},
)
def simpo(logprobs: Tensor, seqs: Seqs, *, beta: Positive = 2.0, gamma: NonNegative = 1.0) -> Returned:
    """-log σ(beta Δ - gamma), where Δ = mean_chosen logprobs - mean_rejected logprobs.

    returns   [N/2]  nats, one loss per pair

    gamma is the target of beta Δ; the paper has gamma / beta from 0.3 to 0.5 nats per token. Nothing keeps the policy near a
    reference: watch `nll` and `chosen_reward`, which may both get worse.

    When to use: Pairs without a reference model, which saves its memory and its pass. Watch that the answers stay
    fluent.
    """
    chosen, rejected = seqs.pairs(seqs.mean(logprobs))
    return -logsigmoid(beta * (chosen - rejected) - gamma), pair_stats(chosen, rejected, beta)


@register_loss(
    "alphapo",
    per="pair",
    reduction="pair-mean",
    source="Gupta et al. 2025, arXiv:2501.03884",
    differs={"TRL 1.16.0": "alpha, beta and gamma are 0, 0.1 and 0.5 by default, and the power is not capped"},
    laws={
        "is_another_loss": {"own": {"alpha": 0.0}, "loss": "simpo"},
        "swap_symmetry": {},
        "repetition_changes_nothing": {},
    },
)
def alphapo(
    logprobs: Tensor, seqs: Seqs, *, beta: Positive = 2.0, gamma: NonNegative = 1.0, alpha: float = 0.25
) -> Returned:
    """-log σ(beta (r_chosen - r_rejected) - gamma), where r = (1 - p^-alpha) / alpha and log p = a response's mean logprob.

    returns   [N/2]  nats, one loss per pair

    alpha shapes the reward: 0 is SimPO's r = log p; with alpha above 0 unlikely responses have a larger gradient, below 0 a
    smaller one. p^-alpha is capped at exp(80); `score_capped` counts the responses beyond, which have no gradient.

    When to use: As simpo, when chosen and rejected answers both become less likely: alpha shapes how far.
    """
    exponent = -alpha * seqs.mean(logprobs)
    scores = seqs.mean(logprobs) if abs(alpha) < 1e-6 else -torch.expm1(capped_exponent(exponent)) / alpha
    chosen, rejected = seqs.pairs(scores)
    losses = -logsigmoid(beta * (chosen - rejected) - gamma)
    return losses, {**pair_stats(chosen, rejected, beta), "score_capped": stats.sum(exponent > MAX_EXPONENT)}


@register_loss(
    "cpo",
    per="pair",
    reduction="pair-mean",
    source="Xu et al. 2024, arXiv:2401.08417",
    differs={"TRL 1.16.0": "its likelihood term, cpo_alpha, is a mean over all chosen tokens of the micro-batch"},
    laws={"swap_symmetry": {}},
)
def cpo(
    logprobs: Tensor,
    seqs: Seqs,
    *,
    beta: Positive = 0.1,
    label_smoothing: Smoothing = 0.0,
    nll_coefficient: NonNegative = 1.0,
) -> Returned:
    """-log σ(beta Δ) - nll_coefficient mean_chosen logprobs, where Δ = Σ_chosen logprobs - Σ_rejected logprobs.

    returns   [N/2]  nats, one loss per pair

    DPO with a uniform reference, plus cross-entropy of the chosen responses to keep the policy near them. The likelihood term
    is each response's mean over its tokens. With label_smoothing ε the first term is
    -(1 - ε) log σ(beta Δ) - ε log σ(-beta Δ). `chosen_nll` is the second term without its coefficient.

    When to use: Pairs without a reference model, with cross-entropy of the chosen answers to keep them likely. First
    used for translation.
    """
    chosen, rejected = seqs.pairs(seqs.sum(logprobs))
    nll = -seqs.pairs(seqs.mean(logprobs))[0]
    losses = smoothed_logistic(beta * (chosen - rejected), label_smoothing) + nll_coefficient * nll
    return losses, {**pair_stats(chosen, rejected, beta), "chosen_nll": stats.mean(nll)}


Contrast = Literal["sigmoid", "tpo_l", "hinge", "ipo"]


def contrast_unread(settings: Mapping[str, Any]) -> str:
    """Why one of tpo's settings would change nothing, or ""."""
    contrast = settings["contrast"]
    if settings["gamma"] != GAMMA and contrast != "tpo_l":
        return f"gamma={settings['gamma']:g} is read only with contrast='tpo_l'"
    if settings["label_smoothing"] and contrast in ("hinge", "ipo"):
        return f"label_smoothing={settings['label_smoothing']:g} is not read with contrast={contrast!r}"
    return ""


@register_loss(
    "tpo",
    per="pair",
    reduction="pair-mean",
    source="Saeidi et al. 2024, arXiv:2405.16681, the terms of chosen and rejected",
    conflict=contrast_unread,
    differs={"TRL 1.16.0": "its likelihood term of the gold responses is part of the loss (tpo_alpha 1)"},
    laws={
        "is_another_loss": [
            {
                "own": {"contrast": "sigmoid", "beta": 0.1, "gamma": GAMMA},
                "loss": "cpo",
                "settings": {"nll_coefficient": 0.0, "beta": 0.1},
            },
            {"own": {"contrast": "tpo_l", "beta": 2.0, "gamma": 1.0}, "loss": "simpo"},
        ],
        "swap_symmetry": {},
        "repetition_changes_nothing": {"when": {"contrast": "tpo_l"}},
    },
)
def tpo(
    logprobs: Tensor,
    seqs: Seqs,
    *,
    beta: Positive = 0.01,
    contrast: Contrast = "sigmoid",
    gamma: NonNegative = GAMMA,
    label_smoothing: Smoothing = 0.0,
) -> Returned:
    """-log σ(beta Δ), where Δ = Σ_chosen logprobs - Σ_rejected logprobs; the gold responses' likelihood is a second part.

    returns   [N/2]  one loss per pair; nats, with contrast "hinge" unitless, with "ipo" nats²

    contrast "hinge" is max(0, 1 - beta Δ). With "ipo" and "tpo_l" the sums are means per token: (Δ - 1 / (2 beta))² and
    -log σ(beta Δ - gamma). With label_smoothing ε the two logistic forms are -(1 - ε) log σ(x) - ε log σ(-x). A triple's
    gold response is learned by cross-entropy, under a weight key of its own:
    get_loss("tpo") + get_loss("cross_entropy", weights="gold_weights"). Gold datums have weights 0, all others
    gold_weights 0. An even number of gold datums keeps chosen and rejected in pairs. `margin` is Δ.

    When to use: Triples of a best, a good and a bad answer: the policy imitates the best and learns the order of the other
    two, in one run and without a reference model. If the best is the chosen one, take cpo. Watch that the gold answers'
    likelihood does not fall.
    """
    chosen, rejected = seqs.pairs((seqs.mean if contrast in ("ipo", "tpo_l") else seqs.sum)(logprobs))
    margin = chosen - rejected
    if contrast == "hinge":
        losses = torch.relu(1 - beta * margin)
    elif contrast == "ipo":
        losses = (margin - 0.5 / beta).square()
    else:
        losses = smoothed_logistic(beta * margin - (gamma if contrast == "tpo_l" else 0.0), label_smoothing)
    return losses, pair_stats(chosen, rejected, beta)


@register_loss(
    "chosen_nll",
    per="pair",
    reduction="pair-mean",
    source="Pang et al. 2024, arXiv:2404.19733 eq. 1, the term beside DPO's",
    laws={"repetition_changes_nothing": {}},
)
def chosen_nll(logprobs: Tensor, seqs: Seqs) -> Returned:
    """-mean_chosen logprobs: cross-entropy of the chosen responses alone, to be added to a loss of pairs.

    Auxiliary, to be added to another loss: get_loss("dpo") + 0.2 * get_loss("chosen_nll").

    returns   [N/2]  nats, one loss per pair

    A loss of the margin may lower both responses as long as it lowers the rejected one more; this keeps the chosen one
    likely. cross_entropy in its place would raise the rejected responses too. `rejected_nll` is the same of the rejected
    responses, which have no gradient.

    When to use: Added to a loss of pairs whose chosen answers become less likely.
    """
    chosen, rejected = seqs.pairs(-seqs.mean(logprobs))
    return chosen, {"rejected_nll": stats.mean(rejected)}


@register_loss(
    "orpo",
    per="pair",
    reduction="pair-mean",
    source="Hong et al. 2024, arXiv:2403.07691 eq. 6 and 7",
    differs={
        "TRL 1.16.0": "the coefficient is called beta and is 0.1; the likelihood term covers the prompt too, over all tokens of the "
        "micro-batch; a mean logprob of 0 is not held off its pole",
        "Fireworks cookbook 0a09c10": "sums over pairs, without their tokens' weights; mean logprobs are held within [-50, -1e-6] nats",
    },
    laws={"swap_symmetry": {}, "repetition_changes_nothing": {}},
)
def orpo(logprobs: Tensor, seqs: Seqs, *, odds_coefficient: NonNegative = 1.0) -> Returned:
    """-a_chosen - odds_coefficient log σ(lo(a_chosen) - lo(a_rejected)), where lo(a) = a - log(1 - e^a).

    returns   [N/2]  nats, one loss per pair

    a is a response's mean logprob, e^a its probability per token, lo(a) the log-odds of that: cross-entropy of the chosen
    response plus its odds against the rejected one, without a reference. odds_coefficient is the paper's λ. In the log-odds
    a is clamped to at most -1e-6 nats; at the clamp it has no gradient. `margin` and the rewards are log-odds; `chosen_nll`
    is -a_chosen.

    When to use: Fine-tuning and preferences in one run, from a base model and without a reference.
    """
    means = seqs.mean(logprobs)
    chosen, rejected = seqs.pairs(log_odds(means))
    nll = -seqs.pairs(means)[0]
    losses = nll - odds_coefficient * logsigmoid(chosen - rejected)
    return losses, {**pair_stats(chosen, rejected), "chosen_nll": stats.mean(nll)}


def log_odds(logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) where log p = logprobs, clamped to at most -1e-6 nats."""
    held = logprobs.clamp(max=-LEAST_NATS)
    # Mächler 2012: each form of log(1 - e^a) is exact where the other loses digits.
    is_near = held > -math.log(2)
    return held - torch.where(is_near, torch.log(-torch.expm1(held)), torch.log1p(-torch.exp(held)))
