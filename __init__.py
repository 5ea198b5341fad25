"""lossbook: the loss functions of language-model training, and a local training API around them.

A loss is one decorated function in a registry. Begin with `ServiceClient`, `register_loss` and `get_loss`; README.md has
examples. The trainer is imported when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from .datums import errors, types
from .datums.builders.pairs import datums_from_pairs
from .datums.builders.tokens import datum_from_model_input_weights, datum_from_tokens_weights
from .datums.builders.topk import datum_from_teacher_topk, datum_from_topk
from .datums.builders.trajectories import Trajectory, datums_from_trajectories
from .datums.types import AdamParams, Datum, EncodedTextChunk, ModelInput, SamplingParams, TensorData
from .losses import (
    Loss,
    PerDatum,
    describe_loss,
    describe_preset,
    get_loss,
    kl_estimate,
    list_losses,
    list_presets,
    matryoshka,
    register_loss,
    rollout_correction,
    safe_ratio,
    stats,
    unregister_loss,
)
from .losses.loss.tensors.sources import provide

if TYPE_CHECKING:
    from .datums.chat.masks import check_template, datum_from_messages
    from .trainer import ReferenceClient, SamplingClient, ServiceClient, TrainingClient, seed_everything
    from .trainer.responses import ForwardBackwardOutput, OptimStepResponse, SampledSequence, SampleResponse

__version__ = "0.1.0"

#: Where the names above are looked up at their first use, since these modules take long to import.
_LAZY_MODULES = (".datums.chat.masks", ".trainer", ".trainer.responses")

__all__ = [
    "AdamParams",
    "Datum",
    "EncodedTextChunk",
    "ForwardBackwardOutput",
    "Loss",
    "ModelInput",
    "OptimStepResponse",
    "PerDatum",
    "ReferenceClient",
    "SampleResponse",
    "SampledSequence",
    "SamplingClient",
    "SamplingParams",
    "ServiceClient",
    "TensorData",
    "TrainingClient",
    "Trajectory",
    "check_template",
    "datum_from_messages",
    "datum_from_model_input_weights",
    "datum_from_teacher_topk",
    "datum_from_tokens_weights",
    "datum_from_topk",
    "datums_from_pairs",
    "datums_from_trajectories",
    "describe_loss",
    "describe_preset",
    "errors",
    "get_loss",
    "kl_estimate",
    "list_losses",
    "list_presets",
    "matryoshka",
    "register_loss",
    "rollout_correction",
    "safe_ratio",
    "seed_everything",
    "stats",
    "types",
    "unregister_loss",
]

# `from lossbook.types import Datum`, as in code written for the Tinker SDK. A file types.py at the root would hide the
# standard library's own from scripts that run there.
sys.modules[f"{__name__}.types"] = types
sys.modules[f"{__name__}.errors"] = errors

provide(lambda: importlib.import_module(".trainer.tensors.sources", __name__))  # type: ignore[arg-type]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _LAZY_MODULES:
            if hasattr(source := importlib.import_module(module, __name__), name):
                return globals().setdefault(name, getattr(source, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
