"""Settings that all recipes share, and their configuration files: TOML or JSON, checked key by key."""

from __future__ import annotations

import json
import reprlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model, model_validator
from pydantic_core import to_jsonable_python

from ...datums.errors import ConfigError, LossContractError, did_you_mean
from ...datums.types import AdamParams
from ...losses.loss.loss import Loss, Mixture
from ...losses.registry import get_loss
from ...trainer.model.fused.fuse import FusedLayers
from ...trainer.model.model import BaseWeights
from .names import TrackerName
from .schedules import Schedule, learning_rate_factor

#: The value of one setting of a loss or a task, as TOML and the command line can write it.
Setting = bool | int | float | str

#: Where rows come from, as `read_rows` takes it; a Path is converted to text.
Source = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]

#: The dtype of matrix products.
Precision = Literal["float32", "bfloat16"]

#: Settings that trade memory for time, as `ServiceClient` names them; they change no number beyond rounding.
MEMORY = ("tokens_per_micro_batch", "checkpoint_layers", "offload_activations")
#: Settings that `--resume` may change: the number of steps (which changes a linear schedule too), how often the run
#: evaluates and saves, its trackers, its device and its folder, its workers, the server it samples on, and memory.
EXTENDABLE = (
    *("steps", "epochs", "eval_every", "save_every", "log_to", "device", "out", "workers", "restarts"),
    *("sampling_workers", "tensor_parallel"),
    *("sample_prompts", "sample_every", "sample_tokens"),
    *("sampler_url", "sampler_model", "sampler_adapters", "sampler_bound", "sampler_connections", "sampler_timeout"),
    *MEMORY,
)


class RecipeConfig(BaseModel):
    """Settings that every recipe has; each field is a flag."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    model: str = Field("tiny", description="hub id, local directory, .gguf file, or 'tiny' (built in code)")
    out: Path = Field(Path("runs/run"), description="the run's folder: settings, metrics, checkpoints, weights")
    start_from: Path | None = Field(None, description="start from these weights: a run's folder or a checkpoint")
    loss: str = Field("cross_entropy", description="a loss's id (see `lossbook losses list`) or module:function")
    loss_config: dict[str, Setting] = Field({}, description="the loss's settings: --loss-config reduction sum")
    all_weights: bool = Field(False, description="train all weights instead of LoRA adapters")
    rank: int = Field(16, ge=1, description="rank of the LoRA adapters")
    train_mlp: bool = Field(True, description="put adapters on the MLP, with all experts of a mixture")
    train_attn: bool = Field(True, description="put adapters on the attention and recurrent layers")
    train_unembed: bool = Field(False, description="add an adapter to the output head")
    lora_targets: tuple[str, ...] = Field(
        (), description="put adapters on these layers instead: names (q_proj) or patterns ('*.layers.1?.*')"
    )
    lora_alpha: float = Field(32.0, gt=0, description="adapters are scaled by this over the rank")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="probability of dropping an input of an adapter")
    learning_rate: float = Field(5e-4, gt=0, description="the optimizer's learning rate after warmup")
    schedule: Schedule = Field(
        "constant", description="after warmup: constant, linear or cosine (0 at the last step), or inverse_sqrt"
    )
    warmup_steps: int = Field(
        0, ge=0, description="steps over which the learning rate rises; it is reached at this step"
    )
    grad_clip_norm: float = Field(1.0, ge=0, description="largest gradient norm; 0: no clipping")
    seed: int = Field(
        0,
        ge=0,
        lt=2**64,
        description="random seed of the adapters' initial values, dropout, the order of the data, sampling",
    )
    eval_every: int = Field(0, ge=0, description="steps between evaluations; 0: only before and after training")
    save_every: int = Field(0, ge=0, description="steps between checkpoints; 0: only one, at the end")
    sample_prompts: tuple[str, ...] = Field(
        (), description="prompts answered during training, written to samples.jsonl"
    )
    sample_every: int = Field(0, ge=0, description="steps between these answers; 0: only before and after")
    sample_tokens: int = Field(64, ge=1, description="most tokens in such an answer")
    log_to: tuple[TrackerName, ...] = Field((), description="trackers that receive the metrics, besides metrics.jsonl")
    device: str | None = Field(None, description="cpu, cuda, ...; None: the best available")
    workers: int | None = Field(
        None, ge=1, description="worker processes that share the model and the work; None: this process alone"
    )
    tensor_parallel: int = Field(
        1,
        ge=1,
        description="workers that share each matrix of a layer; with --all-weights, of models that it was tried with",
    )
    restarts: int = Field(0, ge=0, description="how often to go on from the last checkpoint after a worker died")
    dtype: Precision | None = Field(
        None, description="dtype of products and frozen weights; None: float32 on a CPU, bfloat16 on a GPU"
    )
    base_weights: BaseWeights = Field(
        "full", description="4bit: frozen weights of the layers in 4 bits (nf4, by bitsandbytes), under LoRA adapters"
    )
    fused_layers: FusedLayers = Field(
        "auto",
        description="norms, rotations and MLPs in liger-kernel's kernels: auto (on a GPU), liger (or an error), none",
    )
    tokens_per_micro_batch: int | None = Field(
        None, ge=1, description="most tokens that run together; None: 16,384 on a GPU, 4,096 on a CPU"
    )
    checkpoint_layers: bool = Field(
        False, description="compute each layer again in the backward: a layer's activations in memory, 4/3 of the FLOPs"
    )
    offload_activations: bool = Field(False, description="keep what the backward needs in the host's memory")
    deterministic: bool = Field(
        False, description="use torch's deterministic algorithms: the same bits on the same GPU, more slowly"
    )
    resume: bool = Field(False, description="continue the run in `out` from its last checkpoint")
    overwrite: bool = Field(False, description="delete the run in `out` and start again")
    changed_data: bool = Field(
        False, description="with --resume: go on although a data file is not the one that the run began with"
    )

    @model_validator(mode="after")
    def _resumed_with_changes(self) -> Self:
        if self.changed_data and not self.resume:
            raise ValueError("changed_data is for --resume only: a new run reads the data as they are")
        return self

    @model_validator(mode="after")
    def _workers_are_restarted(self) -> Self:
        if self.restarts and self.workers is None:
            raise ValueError("restarts are for workers that died: give --workers too")
        return self

    @model_validator(mode="after")
    def _matrices_are_shared(self) -> Self:
        if self.tensor_parallel > 1 and (self.workers is None or self.workers % self.tensor_parallel):
            raise ValueError(
                "tensor_parallel divides the workers that share each matrix: give --workers, a multiple of it"
            )
        if self.tensor_parallel > 1 and not self.all_weights:
            raise ValueError("tensor_parallel is for training all weights: give --all-weights too, or leave it out")
        return self

    @model_validator(mode="after")
    def _adapters_are_chosen_once(self) -> Self:
        names = ("train_mlp", "train_attn", "lora_targets", "lora_alpha", "lora_dropout")
        given = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
        if self.all_weights and given:
            raise ValueError(
                f"--all-weights trains no adapters, so {given[0]} would be ignored: leave one of the two out"
            )
        if self.all_weights and self.base_weights == "4bit":
            raise ValueError("--all-weights trains all weights, and 4-bit ones cannot be: leave one of the two out")
        if self.lora_targets and not (self.train_mlp and self.train_attn):
            raise ValueError(
                "choose layers by --lora-targets, or parts by --no-train-mlp and --no-train-attn, not by both"
            )
        return self

    def adam_params(self, step: int, total: int) -> AdamParams:
        """The optimizer's settings at one of `total` steps, counted from 1. Raises ConfigError as `learning_rate_factor` does."""
        factor = learning_rate_factor(self.schedule, self.warmup_steps, step, total)
        return AdamParams(learning_rate=self.learning_rate * factor, grad_clip_norm=self.grad_clip_norm)

    def settings(self) -> dict[str, Any]:
        """The settings as JSON values, without those about an earlier run: `resume`, `overwrite`, `changed_data`."""
        return self.model_dump(mode="json", exclude={"resume", "overwrite", "changed_data"})

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The defaults of the settings that have one, as JSON values."""
        fields = {name: field for name, field in cls.model_fields.items() if not field.is_required()}
        values = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
        return to_jsonable_python(values)


class DataConfig(RecipeConfig):
    """Settings of recipes that train on rows of data, or on questions of a reasoning-gym task."""

    data: Source | None = Field(
        None, description="training data: .jsonl, .parquet, a glob pattern, or datasets:NAME:SPLIT"
    )
    eval_data: Source | None = Field(None, description="held-out data, in the same forms")
    task: str | None = Field(None, description="a reasoning-gym task to train on, instead of data")
    task_config: dict[str, Setting] = Field({}, description="the task's settings: --task-config max_words 5")
    task_size: int = Field(512, ge=1, description="number of the task's questions to train on")
    held_out: int = Field(50, ge=0, description="number of the task's questions held out for evaluation")
    max_length: int | None = Field(None, ge=2, description="most tokens in a prompt with its answer; None: no limit")
    batch_size: int = Field(8, ge=1, description="rows or questions per step")
    epochs: int = Field(1, ge=1, description="passes over the data; ignored when --steps is set")
    steps: int | None = Field(None, ge=1, description="optimizer steps, instead of --epochs")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.data is None) == (self.task is None):
            raise ValueError("choose one of --data FILE and --task NAME")
        if (self.task is None and self.task_config) or (self.data is None and self.eval_data is not None):
            raise ValueError("task_config is for --task only, and eval_data for --data only")
        return self


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
