"""Writing a model as transformers reads it: a folder of config, safetensors and tokenizer, adapters merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .load import LoadedModel

#: A value head has no place in a transformers model of this kind; its weight [1, d] and bias [1] are written beside it.
VALUE_HEAD_FILE = "value_head.safetensors"


@torch.no_grad()
def export_model(model: LoadedModel, directory: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write the whole model with its tokenizer, as `AutoModel.from_pretrained` (or ...ForCausalLM) loads it.

    An adapter is added to the weights it lies on, in their own dtype; an output head that is the embedding too gets a
    weight of its own where it has one. dtype: of the weights written, by default their own. The model itself stays as it
    is. A value head is written beside it.
    """
    module: Any = model.module
    state = merged_state(model)
    if dtype is not None:
        state = _converted(state, dtype)
    tied = module.config.tie_word_embeddings
    try:
        module.config.tie_word_embeddings = tied and not (model.lora is not None and model.lora.train_unembed)
        module.save_pretrained(str(directory), state_dict=state)
    finally:
        module.config.tie_word_embeddings = tied
    if dtype is not None:
        _name_dtype(Path(directory) / "config.json", dtype)
    model.tokenizer.save_pretrained(str(directory))
    export_value_head(model, directory)


def export_value_head(model: LoadedModel, directory: str | Path) -> None:
    """Write value_head.safetensors, where the model has a value head."""
    if model.value_head is not None:
        tensors = {name: value.detach().cpu().contiguous() for name, value in model.value_head.state_dict().items()}
        save_file(tensors, Path(directory) / VALUE_HEAD_FILE, metadata={"format": "pt"})


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


def _converted(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The floating-point tensors in another dtype; those that share memory still do."""
    made: dict[tuple[int, torch.Size], Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape)
        found[name] = made.setdefault(key, tensor.to(dtype)) if tensor.is_floating_point() else tensor
    return found


def _name_dtype(path: Path, dtype: torch.dtype) -> None:
    """Write what the weights were converted to into config.json, where save_pretrained puts the module's own dtype."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
