"""`ClientContext`: worker, settings and checkpoint folder, shared by the clients of a service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...losses.loss.loss import LossLike
from ..engine.settings import EngineSettings
from ..model.fused.fuse import fuse_layers
from ..model.model import BaseWeights, LoadedModel
from .futures import Worker

#: A call's loss: an id, "module:function", a `Loss` or mixture, or a function.
LossFunction = str | LossLike | Callable[..., Any]


@dataclass(frozen=True)
class ClientContext:
    """Worker, settings and checkpoint folder, shared by the clients of a service.

    worker          runs all their calls, one after the other
    settings        how their models run
    checkpoint_dir  where `save_state` writes
    device, dtype   of models loaded later; None for defaults
    base_weights    of models loaded later
    """

    worker: Worker
    settings: EngineSettings
    checkpoint_dir: Path
    device: str | None = None
    dtype: torch.dtype | None = None
    base_weights: BaseWeights = "full"

    def fused(self, model: LoadedModel) -> LoadedModel:
        """The same model with fused layers, as the settings say; layers that are compiled are fused by the compiler."""
        settings = self.settings
        choice = "none" if settings.compile_layers and settings.fused_layers == "auto" else settings.fused_layers
        return fuse_layers(model, choice)
