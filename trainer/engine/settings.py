"""`EngineSettings`: how models run, checked when the service is made and handed down whole to where each choice is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from ...datums.errors import ModelError, did_you_mean
from ..choices import FusedLayers
from ..head.backends import Backend
from ..head.logprobs import Strategy
from ..packing.hidden import Batching


@dataclass(frozen=True)
class EngineSettings:
    """How the engine cuts and runs batches; no setting but dropout changes a loss or a gradient beyond rounding.

    tokens_per_micro_batch  None for 16,384 on a GPU, 4,096 on a CPU
    batching                "packed" (one row without padding), "padded", or "single" (one sequence per forward); None for
                            the first of these that gives each sequence its own numbers, as probes of the model see it
    kept_graph_tokens       for how many tokens a loss over the whole batch may keep graphs before it takes a second
                            forward; None for as many as fill half of the free memory, which each such call measures
                            at its first micro-batch
    dropout                 train with the model's dropout; off by default, so that the same data gives the same numbers
                            however it is cut
    checkpoint_layers       keep only each layer's input and compute the layer again in the backward: about 4/3 of the
                            FLOPs, and activation memory of one layer (Chen et al. 2016, arXiv:1604.06174)
    offload_activations     keep what the backward needs in the host's memory
    compile_layers          run each layer through torch.compile; needs a compiler, and minutes at the first call
    fused_layers            norms, rotations and gated MLPs in liger-kernel's fused kernels, where these give the layers' own
                            numbers: "auto" on a GPU where it is installed and layers are not compiled, "liger" or an error,
                            "none" never
    head_strategy           how the head's gradient is computed: see `linear_logprobs`
    head_memory             bytes of logits that the head may hold for the backward; None for a device default
    head_backend            whose code computes the head: see `head.backends`
    deterministic           calls run with torch's deterministic algorithms: on a GPU the same call gives the same bits. Slower;
                            an operation that has none is an error

    Raises ModelError for an unknown choice or a number out of bounds.
    """

    tokens_per_micro_batch: int | None = None
    batching: Batching | None = None
    kept_graph_tokens: int | None = None
    dropout: bool = False
    checkpoint_layers: bool = False
    offload_activations: bool = False
    compile_layers: bool = False
    fused_layers: FusedLayers = "auto"
    head_strategy: Strategy = "auto"
    head_memory: int | None = None
    head_backend: Backend = "auto"
    deterministic: bool = False

    def __post_init__(self) -> None:
        choices = {
            "batching": Batching,
            "fused_layers": FusedLayers,
            "head_strategy": Strategy,
            "head_backend": Backend,
        }
        for name, kind in choices.items():
            value = getattr(self, name)
            if value not in get_args(kind) and not (name == "batching" and value is None):
                listed = ", ".join(repr(choice) for choice in get_args(kind))
                raise ModelError(f"{name} is one of {listed}, not {value!r}.{did_you_mean(str(value), get_args(kind))}")
        for name, least in (("tokens_per_micro_batch", 1), ("kept_graph_tokens", 0), ("head_memory", 0)):
            _check_number(name, getattr(self, name), least)


def _check_number(name: str, value: Any, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        unit = "bytes" if name == "head_memory" else "tokens"
        raise ModelError(f"{name} is a whole number of {unit}, at least {least}, or None for a default, not {value!r}")
