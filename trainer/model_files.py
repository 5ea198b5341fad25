"""Writing a model as transformers reads it: a folder of config, safetensors and tokenizer, adapters merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..datums.errors import ModelError
from .models import LoadedModel


@torch.no_grad()
def export_model(model: LoadedModel, directory: str | Path) -> None:
    """Write the whole model with its tokenizer, as `AutoModel.from_pretrained` (or ...ForCausalLM) loads it.

    An adapter is added to the weights it lies on; the model itself stays as it is. Raises ModelError where that cannot be
    said in the model's own files: an adapted head whose weight is the embedding's too.
    """
    if model.lora is not None and model.lora.train_unembed and _is_tied(model):
        raise ModelError(
            f"the head of {model.name} is its embedding too, and only the head has an adapter: merged, both would change. "
            "Export the adapter instead, or train without train_unembed"
        )
    module: Any = model.module
    module.save_pretrained(str(directory), state_dict=merged_state(model))
    model.tokenizer.save_pretrained(str(directory))


def merged_state(model: LoadedModel) -> dict[str, Tensor]:
    """The weights by the names they have without adapters, adapters' products added. Those without one are not copied."""
    layers = {name: layer for name, layer in model.module.named_modules() if hasattr(layer, "lora_A")}
    state: dict[str, Tensor] = {}
    for name, tensor in model.module.state_dict().items():
        if ".lora_" in name:
            continue
        owner, is_base, rest = name.rpartition(".base_layer.")
        plain = f"{owner}.{rest}" if is_base else name
        state[plain] = _with_adapters(layers[owner], tensor) if is_base and rest == "weight" else tensor
    return state


def _with_adapters(layer: Any, weight: Tensor) -> Tensor:
    for name in layer.active_adapters:
        if name in layer.lora_A:
            weight = weight + layer.get_delta_weight(name).to(weight.dtype)
    return weight


def _is_tied(model: LoadedModel) -> bool:
    module: Any = model.module
    head = getattr(module.get_output_embeddings(), "base_layer", module.get_output_embeddings())
    return head is not None and head.weight is module.get_input_embeddings().weight
