"""Low-rank adapters through peft: which layers get one, how they are initialised, and their files."""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ...datums.errors import CheckpointError, ModelError
from .linear import LoraSettings
from .model import LoadedModel
from .tiny import seeded

if TYPE_CHECKING:
    from peft import LoraConfig

#: Fixed rather than tied to the rank: with the product scaled by alpha / rank, the best learning rate then hardly
#: depends on the rank (https://thinkingmachines.ai/blog/lora/).
DEFAULT_ALPHA = 32.0

#: A linear layer belongs to the attention or the MLP when a part of its path does. Attention is asked first:
#: BERT's `attention.output.dense` is attention, its `output.dense` is not.
ATTENTION_PARTS = frozenset(
    {"attn", "self_attn", "attention", "self_attention", "linear_attn", "mixer", "temporal_block"}
)
MLP_PARTS = frozenset(
    {"mlp", "ffn", "feed_forward", "feedforward", "intermediate", "output", "mlp_block", "fc1", "fc2", "shared_mlp"}
    | {"block_sparse_moe", "shared_expert", "dense_h_to_4h", "dense_4h_to_h"}
)


def add_lora(
    model: LoadedModel,
    *,
    rank: int = 32,
    alpha: float | None = None,
    seed: int | None = None,
    train_mlp: bool = True,
    train_attn: bool = True,
    train_unembed: bool = False,
) -> LoadedModel:
    """Freeze the model and put y += (alpha / rank)·B A x on its linear layers, in place; returns the same model.

    A [rank, in] is Kaiming-uniform from `seed`, B [out, rank] is zero, so at first the outputs are unchanged; both
    are float32 (float64 in a float64 model). `alpha` is 32 by default; a seed that is not given is drawn, and kept in
    `model.lora.seed`. The global random state is left as it was. `train_attn`, `train_mlp` and `train_unembed`
    choose the attention, the MLP and the output head.

    Raises ModelError for a rank or alpha out of bounds, no part chosen, a chosen part without a linear layer, or a
    model that has an adapter already.
    """
    if model.lora is not None:
        raise ModelError(f"{model.name} has a LoRA adapter already (rank {model.lora.rank}); load the model anew")
    alpha = DEFAULT_ALPHA if alpha is None else float(alpha)
    if not 0 < alpha < math.inf:
        raise ModelError(f"LoRA alpha must be positive and finite, not {alpha}")
    parts = {"attention": train_attn, "mlp": train_mlp, "unembed": train_unembed}
    targets = _targets(model, {part for part, wanted in parts.items() if wanted})
    _check_rank(rank, targets)
    seed = secrets.randbits(31) if seed is None else seed
    settings = LoraSettings(rank, alpha, train_mlp, train_attn, train_unembed, seed)
    _attach(model, _peft_config(model, settings, targets), settings)
    return model


def export_adapter(model: LoadedModel, directory: str | Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors, as `peft.PeftModel.from_pretrained` reads them.

    Raises ModelError when the model has no adapter.
    """
    _need_adapter(model).save_pretrained(str(directory), save_embedding_layers=False)


def load_adapter_into(model: LoadedModel, directory: str | Path) -> LoadedModel:
    """Give the model the adapter in a directory, in place; returns the same model.

    A model without an adapter gets one of the directory's shape, ready to be trained further. One that has an
    adapter keeps its shape, and the file must fit it. Only safetensors are read.

    Raises CheckpointError when a file is missing, of another kind of adapter or made for another model; the
    model is then as it was before.
    """
    config, tensors = _read_adapter(Path(directory))
    fresh = model.lora is None
    trained = model.trainable()
    if fresh:
        _attach(model, config, LoraSettings(config.r, float(config.lora_alpha), False, False, False, None))
    elif model.lora is not None and (model.lora.rank, model.lora.alpha) != (config.r, float(config.lora_alpha)):
        raise CheckpointError(
            f"the adapter in {str(directory)!r} has rank {config.r} and alpha {config.lora_alpha}, the model's has "
            f"rank {model.lora.rank} and alpha {model.lora.alpha}"
        )
    try:
        _fill(_need_adapter(model), tensors, str(directory))
    except CheckpointError:
        if fresh:
            model.module = model.adapter.unload()
            model.lora = model.adapter = None
            for parameter in trained.values():
                parameter.requires_grad_(True)
        raise
    if fresh:
        model.lora = _settings_from(model, config)
    return model


# --- which layers -----------------------------------------------------------------------------------------------------


def _targets(model: LoadedModel, wanted: set[str]) -> dict[str, nn.Module]:
    """The layers of the wanted parts by name; ModelError, listing the linear layers, where a part has none."""
    layers = _linear_layers(model)
    if not wanted:
        raise ModelError("LoRA needs a part to train: train_attn, train_mlp or train_unembed")
    for part in sorted(wanted):
        if not any(_part(model, name) == part for name in layers):
            names = sorted({_without_numbers(name) for name in layers}) or ["none"]
            raise ModelError(
                f"no linear layer of {model.name} ({type(model.module).__name__}) was recognised as {part}. Its linear "
                f"layers are: {', '.join(names)}. (Fused experts are no linear layers.) Leave that part out"
            )
    return {name: layer for name, layer in layers.items() if _part(model, name) in wanted}


def _linear_layers(model: LoadedModel) -> dict[str, nn.Module]:
    """Linear layers (and GPT-2's Conv1D, which is one) of the whole module, by name."""
    from transformers.pytorch_utils import Conv1D

    return {name: layer for name, layer in model.module.named_modules() if isinstance(layer, nn.Linear | Conv1D)}


def _part(model: LoadedModel, name: str) -> str | None:
    path = name.split(".")
    if model.kind == "decoder" and model.module.get_submodule(name) is _output_layer(model):
        return "unembed"
    if ATTENTION_PARTS & set(path):
        return "attention"
    return "mlp" if MLP_PARTS & set(path) else None


def _output_layer(model: LoadedModel) -> nn.Module | None:
    module: Any = model.module
    layer = module.get_output_embeddings()
    return getattr(layer, "base_layer", layer)


def _check_rank(rank: int, targets: Mapping[str, nn.Module]) -> None:
    name, layer = min(targets.items(), key=lambda item: min(_sides(item[1])))
    limit = min(_sides(layer))
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= limit:
        raise ModelError(
            f"LoRA rank must be an integer from 1 to {limit}, the smaller side of the smallest layer "
            f"({name}, {' x '.join(map(str, _sides(layer)))}), not {rank!r}"
        )


def _sides(layer: nn.Module) -> tuple[int, ...]:
    return tuple(layer.get_parameter("weight").shape)


def _shortest_names(model: LoadedModel, targets: Mapping[str, nn.Module]) -> list[str]:
    """Last parts of the names ("q_proj") where they single out exactly the targets, as other tools expect to read."""
    short = {name.rsplit(".", 1)[-1] for name in targets}
    meant = {name for name in _linear_layers(model) if name.rsplit(".", 1)[-1] in short}
    return sorted(short if meant == set(targets) else targets)


def _without_numbers(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


# --- peft -------------------------------------------------------------------------------------------------------------


def _peft_config(model: LoadedModel, settings: LoraSettings, targets: Mapping[str, nn.Module]) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM" if model.kind == "decoder" else "FEATURE_EXTRACTION",
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft annotates an int and computes with any number
        lora_dropout=0.0,
        target_modules=_shortest_names(model, targets),
        fan_in_fan_out=any(type(layer).__name__ == "Conv1D" for layer in targets.values()),
    )


def _attach(model: LoadedModel, config: LoraConfig, settings: LoraSettings) -> None:
    from peft import get_peft_model

    with warnings.catch_warnings(), seeded(settings.seed or 0):
        # The head's adapter is meant to change the head alone, also where its weight is tied to the embedding's.
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to True")  # GPT-2's head is a plain linear
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft reads it itself
        model.adapter = get_peft_model(model.module, config)  # type: ignore[arg-type]
    model.adapter.peft_config["default"].base_model_name_or_path = model.name
    model.lora = settings


def _need_adapter(model: LoadedModel) -> Any:
    if model.adapter is None:
        raise ModelError(f"{model.name} has no LoRA adapter: call add_lora first, or save the whole model")
    return model.adapter


def _read_adapter(directory: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    from peft import LoraConfig
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (directory / file).is_file():
            raise CheckpointError(f"{str(directory)!r} is no adapter directory: it holds no {file}")
    try:
        config = LoraConfig.from_pretrained(str(directory))
        tensors = load_file(directory / "adapter_model.safetensors")
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"the adapter in {str(directory)!r} cannot be read: {error}") from error
    if not isinstance(config, LoraConfig) or config.use_dora or config.modules_to_save or config.bias != "none":
        raise CheckpointError(
            f"the adapter in {str(directory)!r} is more than plain LoRA, which is all that is supported"
        )
    config.base_model_name_or_path = None  # often a path on another machine
    config.init_lora_weights = True  # the other ways read or change the base weights
    config.inference_mode = False
    return config, tensors


def _fill(adapter: Any, tensors: dict[str, Tensor], source: str) -> None:
    """Copy tensors into the adapter, after making sure that every one fits."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    own = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    for name in sorted(own.keys() | tensors.keys()):
        ours, theirs = (list(group[name].shape) if name in group else "nothing" for group in (own, tensors))
        if ours != theirs:
            raise CheckpointError(
                f"the adapter in {source!r} does not fit this model: at {name} the file has {theirs}, the model {ours}"
            )
    set_peft_model_state_dict(adapter, tensors)


def _settings_from(model: LoadedModel, config: LoraConfig) -> LoraSettings:
    adapted = {name for name, layer in model.module.named_modules() if hasattr(layer, "lora_A")}
    parts = {_part(model, f"{name}.base_layer") for name in adapted}
    return LoraSettings(
        config.r, float(config.lora_alpha), "mlp" in parts, "attention" in parts, "unembed" in parts, None
    )
