"""Settings of the Tinker door: where it keeps things, where models come from, and what stands in for what is not public.

They come from the environment, `LOSSBOOK_TINKER_ROOT=...` and so on, and from `configure(root=..., ...)`.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ...datums.errors import ConfigError, did_you_mean
from ...trainer.model.load import BUILT_IN

PREFIX = "LOSSBOOK_TINKER_"
#: Fields that are keywords of lossbook's `ServiceClient`, under the same names.
_SERVICE = (
    "device",
    "base_weights",
    "tokens_per_micro_batch",
    "checkpoint_layers",
    "offload_activations",
    "compile_layers",
    "deterministic",
    "workers",
    "sampling_workers",
)


class Settings(BaseModel):
    """What the door needs to know. Code written for Tinker cannot say it, since a server decides it there."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    root: Path = Field(Path("checkpoints") / "tinker", description="folder of runs and their checkpoints")
    models: dict[str, str] = Field(
        {},
        description="what a base model's name means: a folder, a .gguf file or a hub id. A folder of that name in the current "
        "folder needs no entry",
    )
    stable_reinforce: str | None = Field(
        None,
        description="the registered loss that stands in for Tinker's `stable_reinforce`, whose formula is not public; without "
        "it that loss is refused",
    )
    value_head: bool = Field(False, description="models in training have a value head, for losses that read values")
    device: str | None = Field(None, description="cpu, cuda, ... (default: the best available)")
    dtype: Literal["float32", "bfloat16", "float64"] | None = Field(None, description="dtype of the model's weights")
    base_weights: Literal["full", "4bit"] = Field("full", description="4bit: frozen weights in 4 bits, under adapters")
    tokens_per_micro_batch: int | None = Field(None, description="most tokens that run together")
    checkpoint_layers: bool = Field(False, description="compute each layer again in the backward, for less memory")
    offload_activations: bool = Field(False, description="keep what the backward needs in the host's memory")
    compile_layers: bool = Field(False, description="run each layer through torch.compile")
    deterministic: bool = Field(False, description="use torch's deterministic algorithms")
    workers: int | None = Field(None, description="worker processes that share a model (default: this process alone)")
    sampling_workers: int | None = Field(None, description="further worker processes, which sample")

    @field_validator("root")
    @classmethod
    def _absolute(cls, root: Path) -> Path:
        return root.expanduser().absolute()  # wherever the process goes later

    @property
    def service(self) -> dict[str, Any]:
        """Keyword arguments of lossbook's `ServiceClient`."""
        dtype = None if self.dtype is None else getattr(torch, self.dtype)
        return {name: getattr(self, name) for name in _SERVICE} | {"dtype": dtype}

    def model(self, name: str) -> str:
        """What lossbook loads for a base model's name."""
        return self.models.get(name, name)

    def models_at_hand(self) -> list[str]:
        """Names of base models that need no download: those of `models`, folders below the current one, and the built-in."""
        here = Path()
        folders = [path.parent.as_posix() for path in (*here.glob("*/config.json"), *here.glob("*/*/config.json"))]
        return list(dict.fromkeys([*self.models, *sorted(folders), *BUILT_IN]))


_lock = threading.Lock()
_current: Settings | None = None


def current() -> Settings:
    """The settings of this process; those of the environment until `configure` changes them."""
    global _current
    with _lock:
        _current = from_environment() if _current is None else _current
        return _current


def configure(**changes: Any) -> Settings:
    """Change settings of this process by name, such as `configure(root="runs", models={"Qwen/Qwen3-8B": "/models/qwen3-8b"})`.

    Clients that are there go on with the earlier ones. Raises ConfigError, naming the field and what it takes.
    """
    global _current
    new = changed(current(), changes)
    with _lock:
        _current = new
    return new


def from_environment(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings that the environment names. Raises ConfigError for a name or a value that is none."""
    environment = os.environ if environment is None else environment
    given = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
    known = {f"{PREFIX}{field.upper()}": field for field in Settings.model_fields}
    for name in given:
        if name not in known:
            raise ConfigError(f"{name} is no setting.{did_you_mean(name, known)} There are: {', '.join(known)}")
    values: dict[str, Any] = {known[name]: value for name, value in given.items() if value}
    if "models" in values:
        try:
            values["models"] = json.loads(values["models"])
        except ValueError as error:
            raise ConfigError(
                f'{PREFIX}MODELS is not JSON ({error}): write {{"Qwen/Qwen3-8B": "/models/qwen3-8b"}}'
            ) from None
    return changed(None, values)


def changed(settings: Settings | None, changes: Mapping[str, Any]) -> Settings:
    """The settings with some of them changed. Raises ConfigError with the field and what it takes."""
    given = {} if settings is None else {name: getattr(settings, name) for name in settings.model_fields_set}
    try:
        return Settings.model_validate({**given, **changes})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        hint = "" if name in Settings.model_fields else did_you_mean(name, Settings.model_fields)
        raise ConfigError(
            f"{name}={first.get('input')!r}: {first['msg']}.{hint} There are: {', '.join(Settings.model_fields)}"
        ) from None
