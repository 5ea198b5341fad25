"""Writing a model as transformers reads it: a folder with config, safetensors and tokenizer, adapters merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...datums import disk
from ...datums.errors import ModelError
from .linear import adapted, without_wrappers
from .model import LoadedModel

#: transformers' classes for these models have no value head; its weight [1, d] and bias [1] go into a file of their own.
VALUE_HEAD_FILE = "value_head.safetensors"


@torch.no_grad()
def export_model(model: LoadedModel, directory: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write the whole model with its tokenizer, as `AutoModel.from_pretrained` (or ...ForCausalLM) loads it.

    Adapters are merged into the weights, in the weights' dtype. A tied output head with an adapter is written as a weight
    of its own. dtype: of the written weights, by default their own. The model itself does not change. A value head is
    written into a file of its own. Raises ModelError where the base weights are 4-bit.
    """
    module: Any = model.module
    state = merged_state(model)
    if dtype is not None:
        state = _converted(state, dtype)
    untied = getattr(module.config, "tie_word_embeddings", False) and _head_is_adapted(model)
    try:
        if untied:
            module.config.tie_word_embeddings = False
        with disk.writing(Path(directory)):
            module.save_pretrained(str(directory), state_dict=state)
    finally:
        if untied:
            module.config.tie_word_embeddings = True
    if dtype is not None:
        _name_dtype(Path(directory) / "config.json", dtype)
    with disk.writing(Path(directory)):
        model.tokenizer.save_pretrained(str(directory))
    export_value_head(model, directory)


def export_value_head(model: LoadedModel, directory: str | Path) -> None:
    """Write value_head.safetensors, where the model has a value head."""
    if model.value_head is not None:
        tensors = {name: value.detach().cpu().contiguous() for name, value in model.value_head.state_dict().items()}
        path = Path(directory) / VALUE_HEAD_FILE
        with disk.writing(path):
            save_file(tensors, path, metadata={"format": "pt"})


def _head_is_adapted(model: LoadedModel) -> bool:
    return model.kind == "decoder" and hasattr(model.module.get_output_embeddings(), "lora_A")  # type: ignore[operator]


def merged_state(model: LoadedModel) -> dict[str, Tensor]:
    """The weights with adapters merged, by the names they have without adapters. Weights without one are not copied."""
    if model.base_weights == "4bit":
        raise ModelError(f"the base weights of {model.name} are 4-bit, and are not merged: export the adapter")
    layers = adapted(model.module)
    state: dict[str, Tensor] = {}
    for name, tensor in model.module.state_dict().items():
        if ".lora_" in name:
            continue
        plain = without_wrappers(name)
        state[plain] = _with_adapters(layers[plain], tensor) if plain in layers else tensor
    return state


def _with_adapters(layer: Any, weight: Tensor) -> Tensor:
    for name in layer.active_adapters:
        if name in layer.lora_A:
            weight = weight + layer.get_delta_weight(name).to(weight.dtype)
    return weight


def _converted(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The floating-point tensors in another dtype; those that share memory still do."""
    by_memory: dict[tuple[int, torch.Size], Tensor] = {}
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape)
        converted[name] = by_memory.setdefault(key, tensor.to(dtype)) if tensor.is_floating_point() else tensor
    return converted


def _name_dtype(path: Path, dtype: torch.dtype) -> None:
    """Write the converted dtype into config.json; save_pretrained writes the module's own."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    disk.write_file(path, json.dumps(config, indent=2) + "\n")
