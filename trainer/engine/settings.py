"""What a service is told about running its models, checked when it is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from ...datums.errors import ModelError, did_you_mean
from ..head.backends import Backend
from ..head.logprobs import Strategy
from .forward import Batching


@dataclass(frozen=True)
class EngineSettings:
    """How the engine cuts and runs batches; no choice here changes a loss or a gradient beyond rounding.

    Raises ModelError for a choice that does not exist or a number that cannot be meant.

    tokens_per_micro_batch  None for a device default
    batching                "packed" (one row without padding) or "padded"; None for packed wherever the model allows it,
                            which measured faster on the CPU too
    kept_graph_tokens       how many tokens' graphs a loss over the whole batch may keep before it takes a second forward;
                            None for half of the free memory, by estimate
    dropout                 train with the model's dropout; off by default, so that the same data gives the same numbers
                            however it is cut
    checkpoint_layers, offload_activations, compile_layers
                            memory or time of the layers: see `LayerOptions`
    head_strategy, head_memory, head_backend
                            memory or time of the head: see `linear_logprobs`; head_memory in bytes
    """

    tokens_per_micro_batch: int | None = None
    batching: Batching | None = None
    kept_graph_tokens: int | None = None
    dropout: bool = False
    checkpoint_layers: bool = False
    offload_activations: bool = False
    compile_layers: bool = False
    head_strategy: Strategy = "auto"
    head_memory: int | None = None
    head_backend: Backend = "auto"

    def __post_init__(self) -> None:
        choices = {"batching": Batching, "head_strategy": Strategy, "head_backend": Backend}
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
