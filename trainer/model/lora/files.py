"""Adapter folders of peft: what is read, which kinds are refused, and how tensors get into a model's adapter."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ....datums import disk
from ....datums.errors import CheckpointError
from ..linear import adapted
from ..model import LoadedModel

if TYPE_CHECKING:
    from peft import LoraConfig

#: Fields of peft's LoraConfig that say where A and B are, their sizes and scales; and those that say nothing of the result.
UNDERSTOOD = frozenset(
    {"r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"}
    | {"target_modules", "exclude_modules", "target_parameters", "layers_to_transform", "layers_pattern"}
    | {
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "task_type",
        "inference_mode",
    }
    | {"init_lora_weights", "loftq_config", "eva_config", "runtime_config", "megatron_core"}
)
ADAPTER_FILE = "adapter_model.safetensors"
#: Ways of initialising A and B that leave the base weights as they are.
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")


def read_adapter(directory: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    from peft import LoraConfig
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for file in ("adapter_config.json", ADAPTER_FILE):
        if not (directory / file).is_file():
            raise CheckpointError(f"{str(directory)!r} is no adapter directory: it holds no {file}")
    try:
        config: Any = LoraConfig.from_pretrained(str(directory))
        tensors = load_file(directory / ADAPTER_FILE)
    except (OSError, ValueError, TypeError, KeyError, ImportError, SafetensorError) as error:
        raise CheckpointError(f"the adapter in {str(directory)!r} cannot be read: {error}") from error
    _check_plain(config, str(directory))
    config.base_model_name_or_path = None  # often a path on another machine
    config.init_lora_weights = True
    config.inference_mode = False
    return config, tensors


def _check_plain(config: Any, source: str) -> None:
    """Raise CheckpointError, naming the setting, for an adapter that is more than A and B on unchanged base weights."""
    from peft import LoraConfig

    if not isinstance(config, LoraConfig):
        raise CheckpointError(f"the adapter in {source!r} is of type {config.peft_type}; only LoRA is supported")
    start = config.init_lora_weights
    if not any(start is plain or start == plain for plain in PLAIN_STARTS):
        raise CheckpointError(
            f"the adapter in {source!r} was made with init_lora_weights={start!r}, which changes the base weights too. Convert "
            "it where it was trained: peft's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    for field in fields(config):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        value = getattr(config, field.name)
        if field.name not in UNDERSTOOD and value != default and value not in (None, [], {}, False):
            raise CheckpointError(
                f"the adapter in {source!r} is more than plain LoRA, which is all that is supported: it has "
                f"{field.name}={value!r}. Merge it with peft's merge_and_unload() and load the merged model"
            )


def check_kinds(model: LoadedModel, source: str) -> None:
    """Raise CheckpointError where peft adapts something else than a matrix by A and B: embeddings, attention modules."""
    for name, layer in adapted(model.module).items():
        if "default" not in layer.lora_A or type(layer).__name__ not in ("Linear", "ParamWrapper"):
            raise CheckpointError(
                f"the adapter in {source!r} adapts {name} by a {type(layer).__name__} of peft; only linear layers and "
                "parameters of matrices are supported"
            )


def check_same_scales(model: LoadedModel, config: LoraConfig, source: str) -> None:
    own = model.adapter.peft_config["default"]
    if (own.r, float(own.lora_alpha)) != (config.r, float(config.lora_alpha)):
        raise CheckpointError(
            f"the adapter in {source!r} has rank {config.r} and alpha {config.lora_alpha}, the model's has "
            f"rank {own.r} and alpha {float(own.lora_alpha)}"
        )
    for name in ("use_rslora", "rank_pattern", "alpha_pattern"):
        ours, theirs = getattr(own, name), getattr(config, name)
        if ours != theirs:
            raise CheckpointError(f"the adapter in {source!r} has {name}={theirs!r}, the model's {ours!r}")


def fill(model: LoadedModel, config: LoraConfig, tensors: dict[str, Tensor], source: str) -> None:
    """Copy tensors into the adapter, after making sure that every one fits."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    own = get_peft_model_state_dict(model.adapter, save_embedding_layers=False)
    try:  # experts of transformers 4 had a layer each
        tensors = convert_peft_adapter_state_dict_for_transformers(model.adapter, config, tensors)
    except (ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"the adapter in {source!r} does not fit {model.name}: {error}") from error
    tensors = _without_base(model, tensors, source)
    for name in sorted(own.keys() | tensors.keys()):
        ours, theirs = (list(group[name].shape) if name in group else "nothing" for group in (own, tensors))
        if ours != theirs:
            raise CheckpointError(
                f"the adapter in {source!r} does not fit this model: at {name} the file has {theirs}, the model {ours}"
            )
        if not bool(torch.isfinite(tensors[name]).all()):
            raise CheckpointError(f"the adapter in {source!r} holds NaN or infinite numbers at {name}")
    set_peft_model_state_dict(model.adapter, tensors)


def _without_base(model: LoadedModel, tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors without the base weights of an adapted output head, which peft writes too; they must be the model's own."""
    state = model.adapter.state_dict()
    for name in [name for name in tensors if name.endswith((".base_layer.weight", ".base_layer.bias"))]:
        own = state.get(name)
        if own is None or own.shape != tensors[name].shape or not torch.equal(own.cpu(), tensors[name].to(own.dtype)):
            raise CheckpointError(
                f"the adapter in {source!r} was made on other weights than {model.name}'s: its {name} differs. Merge it "
                "with peft's merge_and_unload() where it was trained"
            )
    return {name: tensor for name, tensor in tensors.items() if ".base_layer." not in name or ".lora_" in name}


def names_in_files(model: LoadedModel) -> dict[str, str | None]:
    """Other names for those of the adapter's tensors that peft would read back under another name than it writes.

    peft renames an adapter's tensors as transformers renames a model's weights while reading them. Laguna's rule makes
    `shared_experts.` of `shared_expert.`, and meets names that are right already too. None: no name is read back rightly.
    """
    from peft import get_peft_model_state_dict
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers as convert
    from transformers.conversion_mapping import get_model_conversion_mapping

    own, config = get_peft_model_state_dict(model.adapter, save_embedding_layers=False), model.adapter.peft_config
    misread = sorted(own.keys() - convert(model.adapter, config["default"], own).keys())
    rules: list[Any] = get_model_conversion_mapping(model.module) if misread else []  # type: ignore[arg-type]
    pairs = [
        (re.sub(r"\\(.)", r"\1", source), re.sub(r"\\(.)", r"\1", target))
        for rule in rules
        for source, target in zip(rule.source_patterns, rule.target_patterns, strict=False)
    ]
    others: dict[str, str | None] = {}
    for name in misread:
        candidates = {name.replace(target, source) for source, target in pairs} - {name}
        read_as = {other: convert(model.adapter, config["default"], {other: own[name]}).keys() for other in candidates}
        others[name] = next((other for other, names in sorted(read_as.items()) if names == {name}), None)
    return others


def misread_layers(model: LoadedModel) -> set[str]:
    """The layers whose adapters no file could give back to peft."""
    names = [name for name, other in names_in_files(model).items() if other is None]
    return {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in names}


def rename_tensors(file: Path, names: dict[str, str]) -> None:
    """Write a safetensors file anew with other names for some of its tensors."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    with disk.writing(file):
        save_file({names.get(name, name): tensor for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
