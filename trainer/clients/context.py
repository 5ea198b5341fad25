"""`ClientContext`: what the clients of a service share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...losses.loss.loss import LossLike
from ..engine.settings import EngineSettings
from ..training.protocol import Models
from .futures import Worker

#: A call's loss: an id, "module:function", a `Loss` or mixture, or a function.
LossFunction = str | LossLike | Callable[..., Any]


@dataclass(frozen=True)
class ClientContext:
    """What the clients of a service share.

    worker          runs all their calls, one after the other
    models          where their models live
    settings        how their models run
    checkpoint_dir  where `save_state` writes
    sampling        runs the calls of samplers of a model in training, where these have workers of their own
    loading         held while a model is loaded: libraries that make models change settings of the process meanwhile
    """

    worker: Worker
    models: Models
    settings: EngineSettings
    checkpoint_dir: Path
    sampling: Worker | None = None
    loading: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, models: Models, settings: EngineSettings, folder: Path, *, samples_apart: bool) -> ClientContext:
        """A context with threads of its own; samples_apart: models in training have workers of their own to sample from."""
        joins = (
            not settings.deterministic
        )  # what runs together depends on when calls come, and rounding on what runs together
        sampling = Worker("lossbook-sampling", joins=joins) if samples_apart else None
        return cls(Worker(deterministic=settings.deterministic, joins=joins), models, settings, folder, sampling)
