"""Weights with an adapter: how the adapter was made, and the weight that base and adapter make together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class LoraSettings:
    """How an adapter was made. `seed` is None for one that was read from a file.

    targets    names and patterns of the layers that were asked for; None where whole parts were
    dropout    probability with which an adapter's inputs are zeroed in training
    left_out   weights that were meant too and have no adapter, layer numbers as *, with the reason
    """

    rank: int
    alpha: float
    train_mlp: bool
    train_attn: bool
    train_unembed: bool
    seed: int | None
    targets: tuple[str, ...] | None = None
    dropout: float = 0.0
    left_out: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The arguments of `add_lora` that make the same adapter; older checkpoints lack those that are as by default."""
        values = asdict(self)
        del values["left_out"]
        if self.targets is None:
            del values["targets"]
        else:
            values["targets"] = list(self.targets)
        if not self.dropout:
            del values["dropout"]
        return values


def adapted(module: nn.Module) -> dict[str, Any]:
    """peft's layers by the name that the parameter they adapt has without adapters."""
    layers = {}
    for name, layer in module.named_modules():
        if hasattr(layer, "lora_A"):
            layers[f"{without_wrappers(name)}.{getattr(layer, 'parameter_name', 'weight')}"] = layer
    return layers


def without_wrappers(name: str) -> str:
    """A module's or parameter's name as it is without adapters."""
    return ".".join(part for part in name.split(".") if part != "base_layer")


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


def set_adapter_dropout(module: nn.Module, *, on: bool) -> None:
    """Switch the dropout of all adapters on or off, whatever the module's own dropout does."""
    for layer in adapted(module).values():
        layer.lora_dropout.train(on)
