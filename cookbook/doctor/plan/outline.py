"""A model without its weights: modules on the meta device, from a configuration or from sizes alone. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ....datums.errors import ConfigError, LossbookError, ModelError, did_you_mean
from ....trainer.model.defaults import usual_defaults
from ....trainer.model.headers import check_layers, without_memory
from ....trainer.model.load import BUILT_IN, kind_of, loader_of
from ....trainer.model.lora.lora import add_lora
from ....trainer.model.model import Kind, LoadedModel
from ....trainer.model.tiny import build_tiny_encoder, build_tiny_model
from ....trainer.packing.attention import attending
from .attention import NAME, register


@dataclass(frozen=True)
class Sizes:
    """The sizes of a decoder of Llama's kind.

    hidden      width of the hidden states
    mlp         width inside the gated MLP
    kv_heads    heads of keys and values
    tied        whether the output head is the embedding
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    tied: bool = False


#: Well-known models by name, as their config.json has them.
SIZES = {
    "llama-7b": Sizes(4096, 32, 32, 32, 11008, 32000),  # meta-llama/Llama-2-7b-hf
    "llama-8b": Sizes(4096, 32, 32, 8, 14336, 128256),  # meta-llama/Llama-3.1-8B
    "llama-70b": Sizes(8192, 80, 64, 8, 28672, 128256),  # meta-llama/Llama-3.1-70B
}


@usual_defaults()
def outline(model: str | Sizes, dtype: torch.dtype) -> LoadedModel:
    """The modules of a model on the meta device, frozen: parameters have shapes and the dtype, and take no memory.

    model: "tiny" or "tiny-encoder", a name in SIZES, sizes, a folder with config.json, or a hub id whose config.json is cached

    Raises ConfigError where there is no such configuration, ModelError where it is of a kind that is not supported.
    """
    name = model if isinstance(model, str) else "a decoder of these sizes"
    sizes = SIZES.get(model) if isinstance(model, str) else model
    if model in BUILT_IN:
        kind: Kind = "decoder" if model == "tiny" else "encoder"
        module: Any = build_tiny_model() if kind == "decoder" else build_tiny_encoder()
        module = module.to("meta")
    else:
        kind, module = _empty(name, _config_file(name) if sizes is None else sizes)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return LoadedModel(name, module.eval().requires_grad_(False), None, kind, torch.device("meta"))


@contextmanager
def counted_attention(model: LoadedModel) -> Iterator[None]:
    """Inside, the model's layers attend as a fused kernel does, as far as memory goes; a mask is not made."""
    register()
    with attending(model, NAME):
        yield


def trained(model: LoadedModel, rank: int | None) -> LoadedModel:
    """The outline with adapters of a rank, or, for None, with all weights trained; in place. Raises ModelError as `add_lora`."""
    if rank is None:
        return model.train_all_weights()
    with counted_attention(model):
        return add_lora(model, rank=rank, seed=0)


def _empty(name: str, source: Sizes | Path) -> tuple[Kind, Any]:
    from transformers import AutoConfig

    try:
        if isinstance(source, Path):
            check_layers(name, str(source.parent))
            config = AutoConfig.from_pretrained(str(source.parent), trust_remote_code=False)
        else:
            config = _llama(source)
        kind = kind_of(name, config)
        return kind, without_memory(name, config, loader_of(kind, config))
    except LossbookError:
        raise
    except Exception as error:  # an architecture may refuse its configuration in any way
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{name} cannot be built from its sizes alone: {reason}") from error


def _llama(sizes: Sizes) -> Any:
    from transformers import LlamaConfig

    for field in fields(sizes):
        if field.name != "tied" and getattr(sizes, field.name) < 1:
            raise ConfigError(f"--{field.name.replace('_', '-')} is at least 1, not {getattr(sizes, field.name)}")
    for of, by in (("hidden", "heads"), ("heads", "kv_heads")):
        if getattr(sizes, of) % getattr(sizes, by):
            numbers = f"{getattr(sizes, of)} and {getattr(sizes, by)}"
            raise ConfigError(f"--{of} is a multiple of --{by.replace('_', '-')}; they are {numbers}")
    return LlamaConfig(
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        intermediate_size=sizes.mlp,
        vocab_size=sizes.vocabulary,
        tie_word_embeddings=sizes.tied,
        architectures=["LlamaForCausalLM"],
    )


def _config_file(name: str) -> Path:
    """The config.json of a folder or of a hub id in the cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    folder = Path(name or "(no name)").expanduser()
    if (folder / "config.json").is_file():
        return folder / "config.json"
    try:
        cached = None if folder.exists() else try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        cached = None
    if isinstance(cached, str):
        return Path(cached)
    hint = did_you_mean(name, (*BUILT_IN, *SIZES))
    raise ConfigError(
        f"there is no config.json of {name!r} in a folder or in the hub's cache, and `doctor plan` downloads nothing.{hint} "
        f"Name a folder, one of {', '.join((*BUILT_IN, *SIZES))}, or give sizes: --hidden 4096 --layers 32 ..."
    )


def sizes_given(**values: int | bool | None) -> Sizes | None:
    """Sizes from flags, or None where none is given. Raises ConfigError where some are missing."""
    given = {name: value for name, value in values.items() if value not in (None, False)}
    if not given:
        return None
    needed = [field.name for field in fields(Sizes) if field.name not in ("tied", "kv_heads")]
    missing = [f"--{name}" for name in needed if name not in given]
    if missing:
        raise ConfigError(f"a decoder of given sizes needs {', '.join(missing)} too")
    return Sizes(**{"kv_heads": given["heads"], **given})  # type: ignore[arg-type]
