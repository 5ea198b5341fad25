"""Settings that all recipes share, and those of recipes over rows of data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict, model_validator
from pydantic_core import to_jsonable_python

from ...trainer.choices import BaseWeights, FusedLayers
from .choices import Precision, Setting, Source
from .groups import MOST, given, setting
from .optimizer import OptimizerSettings
from .records import RecordSettings

#: Settings that trade memory for time, as `ServiceClient` names them; they change no number beyond rounding.
MEMORY = ("tokens_per_micro_batch", "checkpoint_layers", "offload_activations", "compile_layers")
#: Settings that `--resume` may change: the number of steps (which changes a linear schedule too), how often the run
#: evaluates and saves, its trackers, its device and its folder, its workers, the server it samples on, and memory.
EXTENDABLE = (
    *("steps", "epochs", "eval_every", "save_every", "log_to", "device", "out", "workers", "restarts"),
    *("sampling_workers", "tensor_parallel"),
    *("sample_prompts", "sample_every", "sample_tokens", "keep_checkpoints", "tracker_project", "run_name"),
    *("early_stopping_patience", "early_stopping_metric"),
    *("sampler_url", "sampler_model", "sampler_adapters", "sampler_bound", "sampler_connections", "sampler_timeout"),
    *MEMORY,
)


class RecipeConfig(OptimizerSettings, RecordSettings):
    """Settings that every recipe has; each field is a flag."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    model: str = setting("Model", "tiny", "hub id, local directory, .gguf file, or 'tiny' (built in code)")
    out: Path = setting("Output", Path("runs/run"), "the run's folder: settings, metrics, checkpoints, weights")
    start_from: Path | None = setting("Model", None, "start from these weights: a run's folder or a checkpoint")
    loss: str = setting("Loss", "cross_entropy", "a loss's id (see `lossbook losses list`) or module:function")
    loss_config: dict[str, Setting] = setting("Loss", {}, "the loss's settings: --loss-config reduction sum")
    all_weights: bool = setting("Model", False, "train all weights instead of LoRA adapters")
    rank: int = setting("Model", 16, "rank of the LoRA adapters", ge=1, le=MOST)
    train_mlp: bool = setting("Model", True, "put adapters on the MLP, with all experts of a mixture")
    train_attn: bool = setting("Model", True, "put adapters on the attention and recurrent layers")
    train_unembed: bool = setting("Model", False, "add an adapter to the output head")
    lora_targets: tuple[str, ...] = setting(
        "Model", (), "put adapters on these layers instead: names (q_proj) or patterns ('*.layers.1?.*')"
    )
    lora_alpha: float = setting("Model", 32.0, "adapters are scaled by this over the rank", gt=0)
    lora_dropout: float = setting("Model", 0.0, "probability of dropping an input of an adapter", ge=0, lt=1)
    seed: int = setting(
        "Advanced",
        0,
        "random seed of the adapters' initial values, dropout, the order of the data, sampling",
        ge=0,
        lt=2**64,
    )
    device: str | None = setting("Advanced", None, "cpu, cuda, ...; None: the best available")
    workers: int | None = setting(
        "Advanced", None, "worker processes that share the model and the work; None: this process alone", ge=1, le=MOST
    )
    tensor_parallel: int = setting(
        "Advanced",
        1,
        "workers that share each matrix of a layer; with --all-weights, of models that it was tried with",
        ge=1,
        le=MOST,
    )
    restarts: int = setting(
        "Advanced", 0, "how often to go on from the last checkpoint after a worker died", ge=0, le=MOST
    )
    dtype: Precision | None = setting(
        "Model", None, "dtype of products and frozen weights; None: float32 on a CPU, bfloat16 on a GPU"
    )
    base_weights: BaseWeights = setting(
        "Model", "full", "4bit: frozen weights of the layers in 4 bits (nf4, by bitsandbytes), under LoRA adapters"
    )
    fused_layers: FusedLayers = setting(
        "Model",
        "auto",
        "norms, rotations and MLPs in liger-kernel's kernels: auto (on a GPU), liger (or an error), none",
    )
    tokens_per_micro_batch: int | None = setting(
        "Memory", None, "most tokens that run together; None: 16,384 on a GPU, 4,096 on a CPU", ge=1, le=MOST
    )
    checkpoint_layers: bool = setting(
        "Memory", False, "compute each layer again in the backward: a layer's activations in memory, 4/3 of the FLOPs"
    )
    offload_activations: bool = setting("Memory", False, "keep what the backward needs in the host's memory")
    compile_layers: bool = setting(
        "Memory", False, "run each layer through torch.compile: less memory and time after minutes at the first step"
    )
    deterministic: bool = setting(
        "Advanced", False, "use torch's deterministic algorithms: the same bits on the same GPU, more slowly"
    )
    resume: bool = setting("Resume", False, "continue the run in `out` from its last checkpoint")
    overwrite: bool = setting("Resume", False, "delete the run in `out` and start again")
    changed_data: bool = setting(
        "Resume", False, "with --resume: go on although a data file is not the one that the run began with"
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
        names = ("rank", "train_mlp", "train_attn", "train_unembed", "lora_targets", "lora_alpha", "lora_dropout")
        if self.all_weights and (useless := given(self, *names)):
            raise ValueError(
                f"--all-weights trains no adapters, so {useless[0]} would be ignored: leave one of the two out"
            )
        if self.all_weights and self.base_weights == "4bit":
            raise ValueError("--all-weights trains all weights, and 4-bit ones cannot be: leave one of the two out")
        if self.lora_targets and not (self.train_mlp and self.train_attn):
            raise ValueError(
                "choose layers by --lora-targets, or parts by --no-train-mlp and --no-train-attn, not by both"
            )
        return self

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

    data: Source | None = setting(
        "Data", None, "training data: .jsonl, .parquet, a glob pattern, or datasets:NAME:SPLIT"
    )
    eval_data: Source | None = setting("Data", None, "held-out data, in the same forms")
    task: str | None = setting("Data", None, "a reasoning-gym task to train on, instead of data")
    task_config: dict[str, Setting] = setting("Data", {}, "the task's settings: --task-config max_words 5")
    task_size: int = setting("Data", 512, "number of the task's questions to train on", ge=1, le=MOST)
    held_out: int = setting("Data", 50, "number of the task's questions held out for evaluation", ge=0, le=MOST)
    max_length: int | None = setting(
        "Data", None, "most tokens in a prompt with its answer; None: no limit", ge=2, le=MOST
    )
    batch_size: int = setting("Data", 8, "rows or questions per step", ge=1, le=MOST)
    epochs: int = setting("Data", 1, "passes over the data, unless --steps is given", ge=1, le=MOST)
    steps: int | None = setting("Data", None, "optimizer steps, instead of --epochs", ge=1, le=MOST)

    @property
    def is_held_out(self) -> bool:
        """Whether there are held-out data to evaluate on."""
        return self.eval_data is not None or (self.task is not None and self.held_out > 0)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.data is None) == (self.task is None):
            raise ValueError("choose one of --data FILE and --task NAME")
        if self.task is None and (useless := given(self, "task_config", "task_size", "held_out")):
            raise ValueError(f"{useless[0]} is for --task only")
        if self.data is None and self.eval_data is not None:
            raise ValueError("eval_data is for --data only")
        return self

    @model_validator(mode="after")
    def _steps_are_counted_once(self) -> Self:
        if self.steps is not None and given(self, "epochs"):
            raise ValueError("choose one of --steps and --epochs")
        return self

    @model_validator(mode="after")
    def _lengths_are_limited(self) -> Self:
        if self.max_length is None and "truncation" in type(self).model_fields and given(self, "truncation"):
            raise ValueError("truncation is for --max-length only")
        return self
