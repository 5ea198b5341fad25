"""The settings of rollouts from a server, and the policy that they ask for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, model_validator

from ....datums.errors import ModelError
from ..episodes import Policy
from .adapters import ServedPolicy
from .connection import checked_url
from .sampler import SamplingServer

if TYPE_CHECKING:
    from ....trainer import TrainingClient


class SamplerSettings(BaseModel):
    """Where rollouts are sampled: a part of a recipe's configuration."""

    sampling_workers: int | None = Field(
        None,
        ge=1,
        description="with --workers: further processes that sample, with --off-policy-steps 1 during training",
    )
    sampler_url: str | None = Field(
        None,
        description="sample on a server of the OpenAI completions API (vLLM, SGLang), such as http://localhost:8000",
    )
    sampler_model: str | None = Field(None, description="the server's name for the model; None: the one it serves")
    sampler_adapters: Path | None = Field(
        None, description="folder through which adapters reach the server, which reads it under the same path"
    )
    sampler_bound: float | None = Field(
        None,
        gt=0,
        description="largest mean difference of the server's logprobs, nats; None: 0.002 in float32, 0.1 in bfloat16",
    )
    sampler_connections: int = Field(64, ge=1, description="most requests to the server at a time")
    sampler_timeout: float = Field(600.0, gt=0, description="seconds for one request to the server")

    @model_validator(mode="after")
    def _sampled_beside_workers(self) -> SamplerSettings:
        if self.sampling_workers is not None and getattr(self, "workers", None) is None:
            raise ValueError("sampling workers are beside workers that train: give --workers too")
        if self.sampling_workers is not None and self.sampler_url is not None:
            raise ValueError("choose one of --sampling-workers and --sampler-url")
        return self

    @model_validator(mode="after")
    def _served(self) -> SamplerSettings:
        if self.sampler_url is None:
            given = [name for name in SERVER_SETTINGS if getattr(self, name) != _default(name)]
            if given:
                raise ValueError(f"{given[0]} is for --sampler-url only")
            return self
        checked_url(self.sampler_url)
        if getattr(self, "all_weights", False):
            raise ValueError(
                "a server loads adapters while it runs, but whole weights only when it starts: leave --all-weights out, or sample "
                "here, without --sampler-url"
            )
        if self.sampler_adapters is None:
            raise ValueError("--sampler-url needs --sampler-adapters, a folder that this process and the server share")
        return self


SERVER_SETTINGS = tuple(n for n in SamplerSettings.model_fields if n not in ("sampler_url", "sampling_workers"))


def _default(name: str) -> object:
    return SamplerSettings.model_fields[name].default


def policy_of(settings: SamplerSettings, training: TrainingClient, run: Path) -> AbstractContextManager[Policy]:
    """What gives samplers of the weights in training: the client itself, or a server. run: the run's folder.

    Raises SamplerError where the server is away or serves another model.
    """
    if settings.sampler_url is None or settings.sampler_adapters is None:
        return nullcontext(training)
    server = server_of(
        settings.sampler_url,
        training,
        model=settings.sampler_model,
        timeout=settings.sampler_timeout,
        connections=settings.sampler_connections,
    )
    return ServedPolicy(
        training, server, settings.sampler_adapters, run=str(run.absolute()), bound=settings.sampler_bound
    )


def server_of(url: str, training: TrainingClient, **options: Any) -> SamplingServer:
    """The server at an address, for samples of the model in training; options: of `SamplingServer`, which also says what is raised."""
    info = training.get_info()
    if info.kind != "decoder":
        raise ModelError(f"{info.model_name} is an encoder: it does not sample")
    return SamplingServer(url, info, **options)
