"""lossbook: the loss functions of language-model training, and a local training API around them.

A loss is one decorated function in a registry. Begin with `ServiceClient`, `register_loss` and `get_loss`; README.md has
examples. Names are imported at their first use: `import lossbook` is quick, and torch comes with the first name that needs it.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from .datums import errors
from .datums.lazy import alias, hand_over, lazy

if TYPE_CHECKING:
    from .datums import types
    from .datums.builders.pairs import datums_from_pairs
    from .datums.builders.tokens import datum_from_model_input_weights, datum_from_tokens_weights
    from .datums.builders.topk import datum_from_teacher_topk, datum_from_topk
    from .datums.builders.trajectories import Trajectory, datums_from_trajectories
    from .datums.chat.masks import check_template, datum_from_messages
    from .datums.types import AdamParams, Datum, EncodedTextChunk, ModelInput, SamplingParams, TensorData
    from .integrations import remote
    from .losses import (
        Loss,
        PerDatum,
        adaptive_layer,
        describe_loss,
        describe_preset,
        get_loss,
        kl_estimate,
        list_losses,
        list_presets,
        matryoshka,
        matryoshka_2d,
        register_loss,
        rollout_correction,
        safe_ratio,
        sampled_layers,
        stats,
        unregister_loss,
    )
    from .trainer import ReferenceClient, SamplingClient, ServiceClient, TrainingClient, seed_everything
    from .trainer.responses import ForwardBackwardOutput, OptimStepResponse, SampledSequence, SampleResponse

__version__ = "0.1.0"

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
    "adaptive_layer",
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
    "matryoshka_2d",
    "register_loss",
    "remote",
    "rollout_correction",
    "safe_ratio",
    "sampled_layers",
    "seed_everything",
    "stats",
    "types",
    "unregister_loss",
]

#: Where each name comes from at its first use; type checkers read the imports above.
_HOMES = {
    ".datums": ("types",),
    ".datums.builders.pairs": ("datums_from_pairs",),
    ".datums.builders.tokens": ("datum_from_model_input_weights", "datum_from_tokens_weights"),
    ".datums.builders.topk": ("datum_from_teacher_topk", "datum_from_topk"),
    ".datums.builders.trajectories": ("Trajectory", "datums_from_trajectories"),
    ".datums.chat.masks": ("check_template", "datum_from_messages"),
    ".datums.types": ("AdamParams", "Datum", "EncodedTextChunk", "ModelInput", "SamplingParams", "TensorData"),
    ".integrations": ("remote",),
    ".losses": (
        "Loss",
        "PerDatum",
        "adaptive_layer",
        "describe_loss",
        "describe_preset",
        "get_loss",
        "kl_estimate",
        "list_losses",
        "list_presets",
        "matryoshka",
        "matryoshka_2d",
        "matryoshka_2d",
        "register_loss",
        "rollout_correction",
        "safe_ratio",
        "sampled_layers",
        "stats",
        "unregister_loss",
    ),
    ".trainer": ("ReferenceClient", "SamplingClient", "ServiceClient", "TrainingClient", "seed_everything"),
    ".trainer.responses": ("ForwardBackwardOutput", "OptimStepResponse", "SampleResponse", "SampledSequence"),
}
__getattr__, __dir__ = lazy(__name__, _HOMES, __all__)

# `from lossbook.types import Datum`, as in code written for the Tinker SDK. A file types.py at the root would hide the
# standard library's own from scripts that run there.
alias(f"{__name__}.types", f"{__name__}.datums.types")
alias(f"{__name__}.remote", f"{__name__}.integrations.remote")
sys.modules[f"{__name__}.errors"] = errors

hand_over("sources", lambda: importlib.import_module(".trainer.tensors.sources", __name__))
