"""The settings of rollouts from a server, and the policy that they ask for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....datums.errors import ModelError
from ...settings.sampler import SamplerSettings
from ..episodes import Policy
from .adapters import ServedPolicy
from .sampler import SamplingServer

if TYPE_CHECKING:
    from ....trainer import TrainingClient


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
