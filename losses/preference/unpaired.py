"""Losses of single responses, each labelled good or bad: no pairs are needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import stats
from ..batch.seqs import Seqs
from ..registry import register_loss
from ..spec.settings import NonNegative, Positive
from ..spec.spec import FlagPerDatum
from .common import AXES, Returned


def _labelled(datums: int, config: Any, inputs: Mapping[str, Tensor | None]) -> int:
    """Every datum but those that serve the KL estimate alone."""
    mismatched = inputs["is_mismatched"]
    return datums if mismatched is None else datums - int(mismatched.sum())


@register_loss(
    "kto",
    per="datum",
    couples="batch",
    reduction="mean",
    source="Ethayarajh et al. 2024, arXiv:2402.01306 eq. 7 and 8",
    units=_labelled,
    axes=AXES,
    differs={"TRL": "z0 is over each rank's micro-batch, averaged over ranks"},
    claims={"value_at_reference": {"value": 0.5}, "agreeing_tokens_are_silent": {}},
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
    """w_D σ(-beta (x - z0)) of a desirable response, w_U σ(beta (x - z0)) of another, where x = Σ (logprobs - ref_logprobs).

    logprobs        [T]  nats, under the policy in training
    ref_logprobs    [T]  nats, under the frozen reference
    label           [N]  0 or 1: whether the response is desirable
    is_mismatched   [N]  0 or 1, optional: 1 marks a response that belongs to another prompt and serves z0 alone
    returns         [L]  unitless, from 0 to the weight, one loss a labelled datum; half the weight at the reference

    L counts the datums that are not mismatched. z0 = max(0, mean x of the mismatched), without a gradient, estimates
    KL(policy || reference); without mismatched datums it is 0. Their label is not read, but must be there. Keep
    desirable_weight x desirable datums near undesirable_weight x undesirable ones. `kl` is z0: while it rises fast, the
    policy drifts, whatever the labels say.
    """
    ratios = seqs.sum(logprobs - ref_logprobs)
    aside = torch.zeros_like(ratios, dtype=torch.bool) if is_mismatched is None else is_mismatched.bool()
    kl = (torch.where(aside, ratios.detach(), 0).sum() / aside.sum().clamp(min=1)).clamp(min=0)
    losses, found = _labelled_losses(ratios[~aside], label[~aside], beta, desirable_weight, undesirable_weight, kl)
    return losses, {**found, "kl": stats.mean(kl)}


@register_loss(
    "apo_zero_unpaired",
    per="datum",
    reduction="mean",
    source="D'Oosterlinck et al. 2024, arXiv:2408.06266 eq. 7, for single responses",
    axes=AXES,
    claims={
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
    """w_D σ(-beta x) of a desirable response, w_U σ(beta x) of another, where x = Σ (logprobs - ref_logprobs).

    logprobs       [T]  nats, under the policy in training
    ref_logprobs   [T]  nats, under the frozen reference
    label          [N]  0 or 1: whether the response is desirable
    returns        [N]  unitless, from 0 to the weight, one loss a datum; half the weight at the reference

    KTO with z0 = 0, so nothing couples the batch. It is bounded: a response far on either side of the reference has hardly
    a gradient.
    """
    ratios = seqs.sum(logprobs - ref_logprobs)
    return _labelled_losses(ratios, label, beta, desirable_weight, undesirable_weight, ratios.new_zeros(()))


def _labelled_losses(
    ratios: Tensor, label: Tensor, beta: float, desirable_weight: float, undesirable_weight: float, zero: Tensor
) -> Returned:
    """Each labelled response's loss [L] around the log-ratio `zero`, and metrics; rewards are not shifted by it."""
    is_desirable = label.bool()
    shifted = beta * (ratios - zero)
    losses = torch.where(
        is_desirable, desirable_weight * torch.sigmoid(-shifted), undesirable_weight * torch.sigmoid(shifted)
    )
    return losses, {
        "desirable_reward": stats.mean(beta * ratios[is_desirable]),
        "undesirable_reward": stats.mean(beta * ratios[~is_desirable]),
        "desirable": stats.mean(is_desirable),
    }
