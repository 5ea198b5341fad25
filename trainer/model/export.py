"""Writing a model as transformers reads it: a folder with config, safetensors and tokenizer, adapters merged.

Weights are gathered, merged and converted one by one, and written file by file: beside the model no more than one file's
weights are in memory, on the first rank.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...datums import disk
from ...datums.errors import ModelError
from ..shards import whole
from .linear import adapted, without_wrappers
from .model import LoadedModel

#: transformers' classes for these models have no value head; its weight [1, d] and bias [1] go into a file of their own.
VALUE_HEAD_FILE = "value_head.safetensors"
#: Bytes of weights in a file, as the hub advises; a single weight may be larger.
FILE_BYTES = 5 * 10**9
_WEIGHT_FILES = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


@dataclass(frozen=True)
class _Plan:
    """What is written where.

    files     the weights of each file, by the names that transformers gives them on disk
    sources   for each of those weights, the weights of the module that it is made from; several that are converted together
    index     the content of model.safetensors.index.json; None where there is one file
    """

    files: dict[str, list[str]]
    sources: dict[str, tuple[str, ...]]
    index: dict[str, Any] | None


@torch.no_grad()
def export_model(
    model: LoadedModel, directory: str | Path, *, dtype: torch.dtype | None = None, file_bytes: int = FILE_BYTES
) -> None:
    """Write the whole model with its tokenizer, as `AutoModel.from_pretrained` (or ...ForCausalLM) loads it.

    Adapters are merged into the weights, in the weights' dtype. A tied output head with an adapter is written as a weight
    of its own. dtype: of the written weights, by default their own. The model itself does not change. A value head is
    written into a file of its own. Weights of more than `file_bytes` are split over files with an index.

    Ranks call this together: all take part in gathering, and the first writes. Raises ModelError where the base weights are
    4-bit, and on every rank what one of them raises.
    """
    folder, ranks = Path(directory), model.ranks
    if model.base_weights == "4bit":
        raise ModelError(f"the base weights of {model.name} are 4-bit, and are not merged: export the adapter")
    with ranks.agree():
        state = _state(model)
        plan = _planned(model, state, dtype, file_bytes)
        if ranks.is_first:
            _write_config(model, folder, dtype)
            for path in folder.iterdir():  # of an older export, which might be read in place of this one
                if _WEIGHT_FILES.fullmatch(path.name) and path.name not in plan.files:
                    disk.remove(path)
    _write_weights(model, state, plan, folder, dtype)
    with ranks.agree():
        if ranks.is_first:
            if plan.index is not None:
                disk.write_file(folder / "model.safetensors.index.json", json.dumps(plan.index, indent=2) + "\n")
            with disk.writing(folder):
                model.tokenizer.save_pretrained(str(folder))
    export_value_head(model, folder)


@torch.no_grad()
def export_value_head(model: LoadedModel, directory: str | Path) -> None:
    """Write value_head.safetensors, where the model has a value head. Ranks call this together, and the first writes."""
    if model.value_head is None:
        return
    tensors = {name: whole(value).cpu().contiguous() for name, value in model.value_head.state_dict().items()}
    with model.ranks.agree():
        if model.ranks.is_first:
            path = Path(directory) / VALUE_HEAD_FILE
            with disk.writing(path):
                save_file(tensors, path, metadata={"format": "pt"})


# --- what is written --------------------------------------------------------------------------------------------------


def _state(model: LoadedModel) -> dict[str, Tensor]:
    """The module's weights and buffers by the names they have without adapters; of those that are tied, one."""
    module: Any = model.module
    state = {without_wrappers(name): value for name, value in module.state_dict().items() if ".lora_" not in name}
    for name in {*(getattr(module, "_keys_to_ignore_on_save", None) or ())}:
        state.pop(name, None)
    own = adapted(module)  # with an adapter a weight is no longer the one that it was tied to
    by_identity: dict[int, list[str]] = {}
    for name, value in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        plain = without_wrappers(name)
        if plain in state and plain not in own:
            by_identity.setdefault(id(value), []).append(plain)
    unties = _unties(model)
    for names in by_identity.values():
        for name in _duplicates(module, names):
            if unties:  # then transformers makes none from another, such as the second name of a head's bias
                state[name] = state[name].clone()
            else:
                del state[name]
    return state


def _duplicates(module: Any, tied: list[str]) -> list[str]:
    """Of the names of one weight, those that transformers makes from the others. Raises ModelError where it makes none."""
    known = [
        without_wrappers(f"{name}.{key}" if name else key)
        for name, part in module.named_modules()
        for key in getattr(part, "_tied_weights_keys", None) or ()
    ]
    made = [name for name in sorted(tied) if any(re.search(pattern, name) for pattern in known)][: len(tied) - 1]
    if len(tied) - len(made) > 1:
        raise ModelError(
            f"{', '.join(tied)} are one weight, but {type(module).__name__} does not tie them when it is loaded"
        )
    return made


def _planned(model: LoadedModel, state: Mapping[str, Tensor], dtype: torch.dtype | None, file_bytes: int) -> _Plan:
    """Which weight goes into which file, from shapes alone."""
    from huggingface_hub import split_torch_state_dict_into_shards

    shapes = {name: torch.empty(t.shape, dtype=_dtype_of(t, dtype), device="meta") for name, t in state.items()}
    on_disk = _renamed(model.module, shapes)
    groups = _converted_together(model.module, state)
    # Some are made from weights of several names (HRM's fused projections): then all are converted at once.
    sources = _sources(model, shapes, on_disk, groups) or _sources(model, shapes, on_disk, [tuple(state)])
    missing = on_disk.keys() - (sources or {}).keys()
    if sources is None or missing:
        raise ModelError(f"transformers converts {min(missing)} of {model.name} in a way that cannot be written")
    split = split_torch_state_dict_into_shards(
        on_disk, filename_pattern="model{suffix}.safetensors", max_shard_size=file_bytes
    )
    metadata = {"total_parameters": sum(p.numel() for p in model.module.parameters()), **split.metadata}
    index = {"metadata": metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
    return _Plan(split.filename_to_tensors, sources, index if split.is_sharded else None)


def _sources(
    model: LoadedModel, shapes: Mapping[str, Tensor], on_disk: Mapping[str, Tensor], groups: list[tuple[str, ...]]
) -> dict[str, tuple[str, ...]] | None:
    """For each weight on disk the group that it is made from; None where one is made from several."""
    sources: dict[str, tuple[str, ...]] = {}
    for group in groups:
        for name, value in _renamed(model.module, {source: shapes[source] for source in group}).items():
            if name in sources or name not in on_disk or on_disk[name].shape != value.shape:
                return None
            sources[name] = group
    return sources


def _converted_together(module: Any, names: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    """The names, in groups of those that become weights on disk together: mostly each by itself."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, apply_converters

    conversions = getattr(module, "_weight_conversions", None)
    if conversions is None:
        conversions = get_model_conversion_mapping(module, add_legacy=False)
    converters: list[Any] = [
        one.reverse_transform() for one in reversed(conversions) if isinstance(one, WeightConverter)
    ]
    groups: dict[str, list[str]] = {}
    for name in names:
        becomes, pattern = apply_converters(name, converters)
        groups.setdefault(name if pattern is None else f"{becomes} by {pattern}", []).append(name)
    return [tuple(group) for group in groups.values()]


def _renamed(module: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they are named and laid out on disk."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(module, dict(weights))


def _dtype_of(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


# --- writing ----------------------------------------------------------------------------------------------------------


def _write_config(model: LoadedModel, folder: Path, dtype: torch.dtype | None) -> None:
    """Write config.json and generation_config.json, as transformers does for this module."""
    module: Any = model.module
    unties = _unties(model)
    try:
        if unties:
            module.config.tie_word_embeddings = False
        with disk.writing(folder):
            module.save_pretrained(str(folder), state_dict={})
    finally:
        if unties:
            module.config.tie_word_embeddings = True
    if dtype is not None:
        _name_dtype(folder / "config.json", dtype)


def _unties(model: LoadedModel) -> bool:
    """Whether the head is tied to the embeddings in the model, and no longer in what is written: it has an adapter."""
    module: Any = model.module
    tied = model.has_head and getattr(module.config, "tie_word_embeddings", False)
    return bool(tied) and hasattr(module.get_output_embeddings(), "lora_A")


def _name_dtype(path: Path, dtype: torch.dtype) -> None:
    """Write the converted dtype into config.json; save_pretrained writes the module's own."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    disk.write_file(path, json.dumps(config, indent=2) + "\n")


def _write_weights(
    model: LoadedModel, state: Mapping[str, Tensor], plan: _Plan, folder: Path, dtype: torch.dtype | None
) -> None:
    """Write each file. Every rank gathers the same weights in the same order; only the first keeps them."""
    ranks, layers = model.ranks, adapted(model.module)
    pending: dict[str, Tensor] = {}
    done: set[tuple[str, ...]] = set()
    for file, names in plan.files.items():
        failure: Exception | None = None
        for group in dict.fromkeys(plan.sources[name] for name in names):
            if group in done:
                continue
            done.add(group)
            weights = {name: whole(state[name]) for name in group}  # by all ranks, also after a failure of the first
            if ranks.is_first and failure is None:
                try:
                    merged = {name: _finished(weights.pop(name), layers.get(name), dtype) for name in group}
                    pending |= _renamed(model.module, merged)
                    del merged
                except Exception as error:  # raised when all ranks are there
                    failure = error
        with ranks.agree():
            if failure is not None:
                raise failure
            if ranks.is_first:
                tensors = {name: pending.pop(name).contiguous() for name in names}
                with disk.writing(folder / file):
                    save_file(tensors, folder / file, metadata={"format": "pt"})
                del tensors


def _finished(weight: Tensor, layer: Any, dtype: torch.dtype | None) -> Tensor:
    """A weight as it is written: with its adapters, in the dtype asked for, on the CPU."""
    if layer is not None:
        for name in layer.active_adapters:
            if name in layer.lora_A:
                weight = weight + layer.get_delta_weight(name).to(weight.dtype)
    return weight.to("cpu", _dtype_of(weight, dtype))
