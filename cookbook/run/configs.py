"""What settings become: the loss, the dtype, the optimizer's numbers; and configuration files, checked key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...datums.errors import LossContractError
from ...datums.types import AdamParams
from ...losses.loss.loss import Loss, Mixture
from ...losses.registry import get_loss
from ..settings.base import RecipeConfig
from ..settings.choices import Precision
from .schedules import LearningRates


def adam_params(config: RecipeConfig, step: int, total: int) -> AdamParams:
    """The optimizer's settings at one of `total` steps, counted from 1. Raises ConfigError as `LearningRates.factor` does."""
    lowest = (config.min_learning_rate or 0.0) / config.learning_rate
    rates = LearningRates(config.schedule, config.warmup_steps, config.warmup_ratio, config.decay_steps, lowest)
    return AdamParams(
        learning_rate=config.learning_rate * rates.factor(step, total),
        beta1=config.beta1,
        beta2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        grad_clip_norm=config.grad_clip_norm,
    )


def torch_dtype(name: Precision | None) -> torch.dtype | None:
    """The torch dtype; None (the device's default) stays None."""
    return None if name is None else {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def mean_over_tokens(name: str, settings: Mapping[str, Any]) -> Loss | Mixture:
    """The loss of this id; one per token is averaged over the batch's tokens unless `settings` has a reduction.

    The mean keeps the gradient's size, and so the effect of `grad_clip_norm`, independent of the batch's size. Raises
    UnknownLossError and LossConfigError.
    """
    loss = get_loss(name, **settings)
    if isinstance(loss, Loss) and loss.spec.per == "token" and loss.reduction == "sum" and "reduction" not in settings:
        return get_loss(loss, reduction="token-mean")
    return loss


def configured_loss(config: RecipeConfig) -> Loss:
    """The configured loss, as `mean_over_tokens` gives it. Raises LossContractError for a mixture, which some presets are."""
    loss = mean_over_tokens(config.loss, config.loss_config)
    if isinstance(loss, Loss):
        return loss
    parts = ", ".join(part.name for _, part in loss.parts)
    raise LossContractError(f"{config.loss} is a mixture of {parts}, but this recipe takes one loss")


def resolved_settings(config: RecipeConfig) -> dict[str, Any]:
    """All settings, and under `resolved_loss` the loss's settings with defaults filled in; of a mixture, each part's."""
    loss = mean_over_tokens(config.loss, config.loss_config)
    if isinstance(loss, Loss):
        return {**config.settings(), "resolved_loss": _all_settings(loss)}
    parts = [{"factor": factor, **_all_settings(part)} for factor, part in loss.parts]
    return {**config.settings(), "resolved_loss": {"name": loss.name, "parts": parts}}


def _all_settings(loss: Loss) -> dict[str, Any]:
    settings = loss.config.model_dump(mode="json")
    return {"name": loss.name, "per": loss.spec.per, **settings, "reduction": loss.reduction}
