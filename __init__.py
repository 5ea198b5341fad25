"""lossbook: the place where the loss functions of language-model training live.

An open, local training API around a registry in which a loss is one plain decorated function. README.md shows it at work;
`ServiceClient`, `register_loss` and `get_loss` are where to begin.

The trainer, which needs transformers, is imported when first used.
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

if TYPE_CHECKING:
    from .datums.chat.masks import check_template, datum_from_messages
    from .trainer import ReferenceClient, SamplingClient, ServiceClient, TrainingClient
    from .trainer.responses import ForwardBackwardOutput, OptimStepResponse, SampledSequence, SampleResponse

__version__ = "0.1.0"

#: Names that bring transformers with them, and where they live.
_LAZY = {
    "ForwardBackwardOutput": ".trainer.responses",
    "OptimStepResponse": ".trainer.responses",
    "ReferenceClient": ".trainer",
    "SampleResponse": ".trainer.responses",
    "SampledSequence": ".trainer.responses",
    "SamplingClient": ".trainer",
    "ServiceClient": ".trainer",
    "TrainingClient": ".trainer",
    "check_template": ".datums.chat.masks",
    "datum_from_messages": ".datums.chat.masks",
}

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
    "stats",
    "types",
    "unregister_loss",
]

# `from lossbook.types import Datum`, as in code written for the Tinker SDK. A file types.py at the root would hide the
# standard library's own from scripts that run there.
sys.modules[f"{__name__}.types"] = types
sys.modules[f"{__name__}.errors"] = errors


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
