"""Losses of single responses labelled good or bad, without pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .. import stats
from ..batch.seqs import Seqs
from ..registry import register_loss
from ..spec.groups import Grouping
from ..spec.settings import NonNegative, Positive
from ..spec.spec import FlagPerDatum, PerDatum
from .common import AXES, Returned


def _labelled(datums: int, config: Any, inputs: Mapping[str, Tensor | None] | None) -> Grouping:
    """One value for each datum, except those that only serve the KL estimate."""
    mismatched = None if inputs is None else inputs["is_mismatched"]
    return Grouping(values=datums if mismatched is None else datums - int(mismatched.sum()))


def weightless(settings: Mapping[str, Any]) -> str:
    """Why the loss would be 0 for every datum, or ""."""
    if settings["desirable_weight"] or settings["undesirable_weight"]:
        return ""
    return "desirable_weight and undesirable_weight are both 0, so every loss would be 0"


@register_loss(
    "kto",
    per="datum",
    couples="batch",
    reduction="mean",
    source="Ethayarajh et al. 2024, arXiv:2402.01306 eq. 7 and 8",
    groups=_labelled,
    axes=AXES,
    conflict=weightless,
    differs={"TRL 1.16.0": "z0 is over each rank's micro-batch, averaged over ranks"},
    laws={"value_at_reference": {"value": 0.5}, "agreeing_tokens_are_silent": {}},
)
def kto(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    seqs: Seqs,
    label: FlagPerDatum,
    is_mismatched: FlagPerDatum | None = None,
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> Returned:
    """w_D σ(-beta (x - z0)) for a desirable response, w_U σ(beta (x - z0)) for another, where x = Σ (logprobs - ref_logprobs).

    label           [N]  0 or 1: whether the response is desirable
    is_mismatched   [N]  0 or 1, optional: 1 marks a response to another prompt, which is used only for z0
    returns         [L]  unitless, from 0 to the weight, one loss per labelled datum; half the weight at the reference

    L counts the datums that are not mismatched. z0 = max(0, mean x of the mismatched) has no gradient and estimates
    KL(policy || reference); without mismatched datums it is 0. The label of a mismatched datum is required but not read.
    Keep desirable_weight x desirable datums close to undesirable_weight x undesirable ones. `kl` is z0: if it rises fast,
    the policy drifts away from the reference.

    When to use: Single answers marked good or bad, such as thumbs up and down; no pairs are needed.
    """
    ratios = seqs.sum(logprobs - ref_logprobs)
    aside = torch.zeros_like(ratios, dtype=torch.bool) if is_mismatched is None else is_mismatched.bool()
    kl = (torch.where(aside, ratios.detach(), 0).sum() / aside.sum().clamp(min=1)).clamp(min=0)
    if is_mismatched is not None:
        labelled = seqs.chosen(~aside)
        ratios, label = ratios[labelled], label[labelled]
    losses, metrics = _labelled_losses(ratios, label, beta, desirable_weight, undesirable_weight, kl)
    return losses, {**metrics, "kl": stats.mean(kl)}


@register_loss(
    "apo_zero_unpaired",
    per="datum",
    reduction="mean",
    source="D'Oosterlinck et al. 2024, arXiv:2408.06266 eq. 7, for single responses",
    axes=AXES,
    conflict=weightless,
    laws={
        "is_another_loss": {"loss": "kto"},
        "value_at_reference": {"value": 0.5},
        "agreeing_tokens_are_silent": {},
    },
)
def apo_zero_unpaired(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    seqs: Seqs,
    label: FlagPerDatum,
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> Returned:
    """w_D σ(-beta x) for a desirable response, w_U σ(beta x) for another, where x = Σ (logprobs - ref_logprobs).

    label     [N]  0 or 1: whether the response is desirable
    returns   [N]  unitless, from 0 to the weight, one loss per datum; half the weight at the reference

    KTO with z0 = 0, so nothing couples the batch. It is bounded: a response far above or below the reference has hardly a
    gradient.

    When to use: Single answers marked good or bad, when kto's estimate of the KL is too noisy or batches are small.
    """
    ratios = seqs.sum(logprobs - ref_logprobs)
    return _labelled_losses(ratios, label, beta, desirable_weight, undesirable_weight, ratios.new_zeros(()))


@register_loss(
    "bco",
    per="datum",
    couples="batch",
    reduction="mean",
    source="Jung et al. 2024, arXiv:2404.04656 section 3.3",
    axes=AXES,
    differs={
        "TRL 0.29.0": "the shift is a running mean that this call's rewards have entered already; responses to rare prompts can "
        "be weighted by a density ratio. TRL 1.16.0 has no BCO trainer",
    },
    laws={"agreeing_tokens_are_silent": {}},
)
def bco(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    seqs: Seqs,
    label: FlagPerDatum,
    shift: PerDatum | None = None,
    *,
    beta: Positive = 0.1,
) -> Returned:
    """-log σ(r - δ) for a desirable response, -log σ(δ - r) for another, where r = beta Σ (logprobs - ref_logprobs).

    label     [N]  0 or 1: whether the response is desirable
    shift     [N]  nats, optional: the reward shift δ of each response, the same for all; None: this call's mean reward
    returns   [N]  nats, one loss per datum

    A classifier of single responses around the shift. δ has no gradient; the mean of all rewards is the paper's mean of
    both labels' means when there are as many of each. A loss holds no state between calls: for a running mean, average
    `mean_reward` over the calls so far and give it as `shift` from the second call on. Without `shift` the call is seen
    as a whole, so the loss depends on the batch size. `reward_shift` is δ; metrics of rewards are not shifted.

    When to use: Single answers marked good or bad, when kto's bounded loss learns too slowly from answers that are far on
    the wrong side: here their gradient does not vanish. Watch `reward_shift`: if it runs away, the policy drifts.
    """
    rewards = beta * seqs.sum(logprobs - ref_logprobs)
    mean_reward = rewards.detach().sum() / max(1, len(rewards))
    delta = mean_reward.expand(len(rewards)) if shift is None else shift.to(rewards)
    is_desirable = label.bool()
    lead = rewards - delta
    return -logsigmoid(torch.where(is_desirable, lead, -lead)), {
        "mean_reward": stats.mean(rewards),
        "reward_shift": stats.mean(delta),
        "accuracy": stats.mean((lead > 0) == is_desirable),
        "desirable_reward": stats.mean(rewards, is_desirable),
        "undesirable_reward": stats.mean(rewards, ~is_desirable),
        "desirable": stats.mean(is_desirable),
    }


def _labelled_losses(
    ratios: Tensor, label: Tensor, beta: float, desirable_weight: float, undesirable_weight: float, zero: Tensor
) -> Returned:
    """The loss [L] of each labelled response, relative to the log-ratio `zero`, and metrics; rewards are not shifted."""
    is_desirable = label.bool()
    shifted = beta * (ratios - zero)
    losses = torch.where(
        is_desirable, desirable_weight * torch.sigmoid(-shifted), undesirable_weight * torch.sigmoid(shifted)
    )
    return losses, {
        "desirable_reward": stats.mean(beta * ratios, is_desirable),
        "undesirable_reward": stats.mean(beta * ratios, ~is_desirable),
        "desirable": stats.mean(is_desirable),
    }
