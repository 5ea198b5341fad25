"""The layers that a transformer repeats."""

from __future__ import annotations

from torch import nn

from ..model.model import LoadedModel


def transformer_layers(model: LoadedModel) -> list[nn.Module]:
    """The model's transformer layers, as transformers marks them; none where it marks none."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.backbone.modules() if isinstance(module, GradientCheckpointingLayer)]


def separate_layers(model: LoadedModel) -> list[nn.Module]:
    """Those of the layers that share no parameter with another part of the model, and hold no other layer."""
    layers = [layer for layer in transformer_layers(model) if not any(_is_layer(part) for part in layer.children())]
    owners: dict[int, set[int]] = {}
    inside = {id(part): id(layer) for layer in layers for part in layer.modules()}
    for part in model.module.modules():
        for parameter in part.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(inside.get(id(part), 0))
    return [layer for layer in layers if all(len(owners[id(p)]) == 1 for p in layer.parameters())]


def _is_layer(module: nn.Module) -> bool:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return any(isinstance(part, GradientCheckpointingLayer) for part in module.modules())
