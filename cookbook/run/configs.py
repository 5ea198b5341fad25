"""What settings become: the loss, the dtype, the optimizer's numbers; and configuration files, checked key by key."""

from __future__ import annotations

import json
import reprlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError, create_model

from ...datums.errors import ConfigError, LossContractError, did_you_mean
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


def read_config(path: Path, model: type[BaseModel]) -> dict[str, Any]:
    """The file's values, converted to the types of the model's fields. Raises ConfigError with file and key."""
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: tables or lists are nested too deeply") from None
    except ValueError as error:  # both parsers' errors, and text that is not UTF-8
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"{path}: not {kind}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold names and values, not a {type(values).__name__}")
    return _converted(values, model, path)


def _converted(values: Mapping[str, Any], model: type[BaseModel], path: Path) -> dict[str, Any]:
    converted: dict[str, Any] = {}
    for key, value in values.items():
        field = model.model_fields.get(key)
        if field is None:
            known = ", ".join(model.model_fields)
            hint = did_you_mean(key, model.model_fields)
            raise ConfigError(f"{path}: no setting is called {key!r}.{hint} There are: {known}")
        this_field: dict[str, Any] = {key: (field.annotation, field)}
        alone = create_model(model.__name__, **this_field)  # one field: flags may still add what other rules need
        try:
            converted[key] = getattr(alone(**{key: value}), key)
        except ValidationError as error:
            raise ConfigError(f"{path}: {key} = {reprlib.repr(value)}: {error.errors()[0]['msg']}") from None
    return converted
