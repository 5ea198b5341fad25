"""Settings that all recipes have, and their files: TOML or JSON, checked key by key against the recipe's settings."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model, model_validator

from ...datums.errors import ConfigError, LossContractError, did_you_mean
from ...datums.types import AdamParams
from ...losses.loss.loss import Loss
from ...losses.registry import get_loss
from .names import TrackerName

#: A value of a loss's or a task's settings, as it can be written in TOML or on a command line.
Setting = bool | int | float | str

#: Where rows come from, as `read_rows` takes it; of a Path its text.
Source = Annotated[str, BeforeValidator(lambda given: str(given) if isinstance(given, Path) else given)]

#: What products are computed in.
Precision = Literal["float32", "bfloat16"]

#: What may differ between a run and its continuation: how long it goes on (under a linear schedule that changes the
#: steps to come, too), how often it looks and saves, who is told, and where it is computed and kept.
EXTENDABLE = (
    *("steps", "epochs", "eval_every", "save_every", "log_to", "device", "out"),
    *("sample_prompts", "sample_every", "sample_tokens"),
)


class RecipeConfig(BaseModel):
    """Settings that every recipe has; every field is a flag."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    model: str = Field("tiny", description="hub id, local directory, .gguf file, or 'tiny' (built in code)")
    out: Path = Field(Path("runs/run"), description="folder of the run: settings, metrics, checkpoints, weights")
    start_from: Path | None = Field(
        None, description="a run's folder or a checkpoint, whose weights training begins with"
    )
    loss: str = Field("cross_entropy", description="a registered id (`lossbook losses list`) or module:function")
    loss_config: dict[str, Setting] = Field({}, description="settings of the loss: --loss-config reduction sum")
    all_weights: bool = Field(False, description="train all weights, in place of LoRA adapters")
    rank: int = Field(16, ge=1, description="rank of the LoRA adapters")
    train_unembed: bool = Field(False, description="adapt the output head too")
    learning_rate: float = Field(5e-4, gt=0)
    schedule: Literal["constant", "linear"] = Field("constant", description="linear: down to 0 at the last step")
    warmup_steps: int = Field(0, ge=0, description="steps over which the learning rate rises from 0")
    grad_clip_norm: float = Field(1.0, ge=0, description="0 for no clipping")
    seed: int = Field(
        0, ge=0, description="of the adapters' initial values, the order of the data, and all that is drawn"
    )
    eval_every: int = Field(0, ge=0, description="steps between evaluations; 0 for before and after only")
    save_every: int = Field(0, ge=0, description="steps between checkpoints; 0 for one at the end")
    sample_prompts: tuple[str, ...] = Field((), description="what the model is asked as it learns: see samples.jsonl")
    sample_every: int = Field(0, ge=0, description="steps between such questions; 0 for before and after only")
    sample_tokens: int = Field(64, ge=1, description="tokens an answer may have")
    log_to: tuple[TrackerName, ...] = Field((), description="where numbers go beside metrics.jsonl")
    device: str | None = Field(None, description="cpu, cuda, ...; the best there is if not given")
    dtype: Precision | None = Field(
        None, description="of products, and of frozen weights: float32 on a CPU, bfloat16 on a GPU if not given"
    )
    resume: bool = Field(False, description="continue the run in `out` where its last checkpoint is")
    overwrite: bool = Field(False, description="delete the run in `out` and begin anew")

    def adam_params(self, step: int, total: int) -> AdamParams:
        """The optimizer's numbers for a step, from 1, of `total`."""
        rising = min(step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        falling = (total - step + 1) / total if self.schedule == "linear" else 1.0
        return AdamParams(learning_rate=self.learning_rate * rising * falling, grad_clip_norm=self.grad_clip_norm)

    def settings(self) -> dict[str, Any]:
        """The settings as JSON values, all that make the run what it is."""
        return self.model_dump(mode="json", exclude={"resume", "overwrite"})


class DataConfig(RecipeConfig):
    """Settings of recipes that learn from rows of data, or from the questions of a reasoning-gym task."""

    data: Source | None = Field(
        None, description="what to train on: .jsonl, .parquet, a pattern, or datasets:NAME:SPLIT"
    )
    eval_data: Source | None = Field(None, description="the same, of which nothing is trained on")
    task: str | None = Field(None, description="a reasoning-gym task, in place of data")
    task_config: dict[str, Setting] = Field({}, description="settings of the task: --task-config max_words 5")
    task_size: int = Field(512, ge=1, description="questions of the task to train on")
    held_out: int = Field(50, ge=0, description="questions of the task that only measure")
    max_length: int | None = Field(
        None, ge=2, description="tokens that a prompt and its answer may have; None for no limit"
    )
    batch_size: int = Field(8, ge=1, description="rows or questions a step")
    epochs: int = Field(1, ge=1, description="times that every row is seen, unless steps is given")
    steps: int | None = Field(None, ge=1, description="optimizer steps, in place of epochs")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.data is None) == (self.task is None):
            raise ValueError("choose one of --data FILE and --task NAME")
        if (self.task is None and self.task_config) or (self.data is None and self.eval_data is not None):
            raise ValueError("task_config belongs to --task, eval_data to --data")
        return self


def torch_dtype(name: Precision | None) -> torch.dtype | None:
    """torch's own dtype; None, for the device's default, stays None."""
    return None if name is None else {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def configured_loss(config: RecipeConfig) -> Loss:
    """The recipe's loss as configured; one a token is averaged over the batch's tokens unless it says otherwise.

    A mean keeps the gradient's size, and so the meaning of `grad_clip_norm`, from depending on the batch. Raises
    UnknownLossError, LossConfigError, and LossContractError for a mixture, which some presets are.
    """
    loss = get_loss(config.loss, **config.loss_config)
    if not isinstance(loss, Loss):
        parts = ", ".join(part.name for _, part in loss.parts)
        raise LossContractError(f"{config.loss} is a mixture of {parts}, and this recipe takes one loss")
    if loss.spec.per == "token" and loss.reduction == "sum" and "reduction" not in config.loss_config:
        return get_loss(loss, reduction="token-mean")
    return loss


def resolved_settings(config: RecipeConfig) -> dict[str, Any]:
    """All settings, and under `resolved_loss` those of the loss with its defaults filled in."""
    loss = configured_loss(config)
    resolved = {"name": loss.name, "per": loss.spec.per, **loss.config.model_dump(mode="json")}
    return {**config.settings(), "resolved_loss": {**resolved, "reduction": loss.reduction}}


def read_config(path: Path, model: type[BaseModel]) -> dict[str, Any]:
    """The file's values, converted to the types of the model's fields. Raises ConfigError naming file and key."""
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # both parsers' errors, and text that is not UTF-8
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"{path}: not {kind}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold names and values, not a {type(values).__name__}")
    return _converted(values, model, path)


def _converted(values: Mapping[str, Any], model: type[BaseModel], path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        field = model.model_fields.get(key)
        if field is None:
            known = ", ".join(model.model_fields)
            hint = did_you_mean(key, model.model_fields)
            raise ConfigError(f"{path}: no setting is called {key!r}.{hint} There are: {known}")
        this_field: dict[str, Any] = {key: (field.annotation, field)}
        alone = create_model(model.__name__, **this_field)  # the whole model's rules span fields, some still to come
        try:
            found[key] = getattr(alone(**{key: value}), key)
        except ValidationError as error:
            raise ConfigError(f"{path}: {key} = {value!r}: {error.errors()[0]['msg']}") from None
    return found
