"""Linear layers with an adapter: how the adapter was made, and the weight that layer and adapter make together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class LoraSettings:
    """How an adapter was made. `seed` is None for one that was read from a file."""

    rank: int
    alpha: float
    train_mlp: bool
    train_attn: bool
    train_unembed: bool
    seed: int | None


def effective_weight(layer: Any) -> Tensor:
    """A linear layer's weight [out, in], with its adapter's product added under autograd where peft has wrapped it."""
    base = getattr(layer, "base_layer", layer)
    weight = base.weight
    if base is layer:
        return weight
    for name in layer.active_adapters:
        if name in layer.lora_A:
            weight = weight + layer.scaling[name] * (layer.lora_B[name].weight @ layer.lora_A[name].weight)
    return weight
