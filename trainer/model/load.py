"""Loading a model by name: one built in code, a directory, a GGUF file or a hub id."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...datums.chat.limits import limit_templates
from ...datums.errors import ModelError, WorkerError, did_you_mean, panics_as
from ..choices import BaseWeights
from ..ranks import ALONE, Ranks
from .architecture.classes import kind_of, loader_of
from .architecture.masked_lm import WAYS_TO_A_HEAD, check_class
from .defaults import usual_defaults
from .gguf.convert import converted
from .headers import Memory, check_headers, check_layers, check_missing, total_memory
from .model import WAYS_TO_NAME, Kind, LoadedModel
from .text_check import check_text
from .tiny import build_tiny_encoder, build_tiny_model, build_tiny_tokenizer
from .weights.four_bit import check_base_weights, quantize_base

BUILT_IN = ("tiny", "tiny-encoder")
#: The process that loaded a model first. What is forked from it inherits torch's threads as stopped ones.
_first_process: int | None = None


@usual_defaults()
def load_model(
    base_model: str,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    base_weights: BaseWeights = "full",
    masked_lm_head: bool = False,
    ranks: Ranks = ALONE,
) -> LoadedModel:
    """Load a model and its tokenizer, in eval mode and with nothing requiring a gradient.

    base_model  "tiny", "tiny-encoder", a directory (config.json and safetensors, or a single .gguf), the path of a
                .gguf file, or a hub id. A GGUF is converted once and kept under $LOSSBOOK_CACHE (~/.cache/lossbook)
    device      by default the first GPU, else the CPU
    dtype       of the parameters; by default float32 on a CPU and bfloat16 elsewhere
    base_weights  "4bit" quantizes the linear layers of a decoder's layers: see `four_bit`
    masked_lm_head  keep the masked-LM head of an encoder, which its checkpoint must have; a decoder has its head anyway
    ranks       of several, which call this together, the first one alone reads weights, into the host's memory. The others build
                the module without any, on "meta", and get theirs from `shard_model`

    Code that comes with a model is never run, and weights are read from safetensors or GGUF only, never pickles.
    Raises ModelError when the model cannot be found, is damaged or is of an unsupported kind, and for a device that is not
    there; WorkerError in a forked process in which torch would wait for threads that stayed in its parent.
    """
    _check_not_forked()
    check_base_weights(base_weights)
    limit_templates()  # of every tokenizer, also where a recipe or a script calls it itself
    place = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.float32 if place.type == "cpu" else torch.bfloat16)
    if ranks.size > 1:
        return _load_over(ranks, base_model, dtype, base_weights, masked_lm_head)
    model = _load(base_model, place, dtype, masked_lm_head)
    if base_weights == "4bit":
        quantize_base(model)  # layer by layer: the device never holds the full weights
    model.module.to(place)  # type: ignore[arg-type]
    check_text(model)
    return model


def _load(
    base_model: str, place: torch.device, dtype: torch.dtype, masked_lm_head: bool = False, *, weights: bool = True
) -> LoadedModel:
    """The model, its weights still on the host; without `weights` on "meta"."""
    if base_model not in BUILT_IN:
        module, tokenizer, kind = _load_pretrained(
            base_model, _find(base_model), dtype, place, masked_lm_head, weights=weights
        )
    else:
        kind = "decoder" if base_model == "tiny" else "encoder"
        with nullcontext() if weights else without_weights():
            module = build_tiny_model() if kind == "decoder" else build_tiny_encoder(masked_lm_head=masked_lm_head)
        tokenizer = build_tiny_tokenizer()
        for parameter in module.parameters():  # not module.to(dtype), which would round the rotary frequencies too
            parameter.data = parameter.data.to(dtype)
    module = module.eval().requires_grad_(False)
    return LoadedModel(base_model, module, tokenizer, kind, place, masked_lm_head=masked_lm_head and kind == "encoder")


def _load_over(
    ranks: Ranks, base_model: str, dtype: torch.dtype, base_weights: BaseWeights, masked_lm_head: bool
) -> LoadedModel:
    """The model on the first rank, in the host's memory, and without weights on the others. Raises on all where one fails."""
    if base_weights == "4bit":
        raise ModelError("4-bit base weights are for one process: they are not sharded. Leave base_weights at 'full'")
    model: Any = None
    for first in (True, False):  # others read what the first has fetched or converted
        with ranks.agree():
            if ranks.is_first == first:
                model = _load(base_model, torch.device("cpu"), dtype, masked_lm_head, weights=first)
                if first:
                    check_text(model)
    model.ranks = ranks
    generation = ranks.gather(getattr(model.module, "generation_config", None))[0]
    if generation is not None:  # it lies in a file of its own
        model.module.generation_config = generation
    return model


@usual_defaults()
def load_outline(base_model: str, ranks: Ranks) -> LoadedModel:
    """The model without weights, on "meta", for a look at its modules before any are read. Ranks call this together."""
    model: Any = None
    for first in (True, False):  # as `_load_over` does
        with ranks.agree():
            if ranks.is_first == first:
                model = _load(base_model, torch.device("cpu"), torch.float32, weights=False)
    return model


@contextmanager
def without_weights() -> Iterator[None]:
    """Inside, modules of transformers are made on "meta", where tensors have shapes and no numbers."""
    from transformers import initialization

    with torch.device("meta"), initialization.no_init_weights(), initialization.meta_device_safe_creation_ops():
        yield


def _check_not_forked() -> None:
    global _first_process
    _first_process = _first_process or os.getpid()
    if _first_process != os.getpid() and torch.get_num_threads() > 1:
        raise WorkerError(
            f"this process was forked from one (pid {_first_process}) that computed with several threads, which stayed there: "
            "torch would wait for them for ever. Start processes with 'spawn' (multiprocessing.get_context('spawn')), or call "
            "torch.set_num_threads(1) first"
        )


def usable_device(name: str | torch.device) -> torch.device:
    """The device of this name. Raises ModelError where there is none."""
    try:
        device = torch.device(name)
        if float(torch.ones(1, device=device)) == 1.0:  # fails on "meta", which holds no numbers
            return device
        raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        count = torch.cuda.device_count()
        there = ["cpu", *(f"cuda:{i}" for i in range(count)), *(["mps"] if torch.backends.mps.is_available() else [])]
        raise ModelError(f"device {str(name)!r} cannot be used: {reason}. There is {', '.join(there)}") from None


def _find(name: str) -> str:
    """A directory to load from, or the name itself when it can only be a hub id."""
    path = Path(name or "(no name)").expanduser()
    if path.is_file():
        return str(converted(path))
    if path.is_dir():
        return _model_directory(path)
    if name.endswith(".gguf") or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or not name:
        raise ModelError(f"there is no file or directory {str(path.absolute())!r}. {WAYS_TO_NAME}")
    # The hub takes long to say that it has no such model, so a likely typing error is refused here.
    if hint := "" if "/" in name else did_you_mean(name, BUILT_IN, cutoff=0.75):
        raise ModelError(f"there is no model {name!r}.{hint} {WAYS_TO_NAME}")
    return name


def is_at_hand(name: str) -> bool:
    """Whether a model is built in, lies in a folder or file of this name, or is in the hub's cache: nothing need be fetched."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if name in BUILT_IN or os.path.exists(os.path.expanduser(name)):
        return True
    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return False


def _model_directory(path: Path) -> str:
    if (path / "config.json").is_file():
        return str(path)
    if (path / "adapter_config.json").is_file():
        raise ModelError(
            f"{str(path)!r} holds a LoRA adapter, not a model: load the model it was trained on, then call "
            "load_adapter_into(model, directory)"
        )
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return str(converted(files[0]))
    contents = f"several GGUF files ({', '.join(file.name for file in files)}): name one" if files else "no config.json"
    raise ModelError(f"directory {str(path)!r} holds {contents}. {WAYS_TO_NAME}")


def _load_pretrained(
    name: str, source: str, dtype: torch.dtype, place: torch.device, masked_lm_head: bool, *, weights: bool
) -> tuple[nn.Module, Any, Kind]:
    from transformers import AutoConfig, AutoTokenizer

    try:
        check_layers(name, source)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        kind = kind_of(name, config)
        advice = ""
        if masked_lm_head and kind == "encoder":
            check_class(name, config)
            advice = WAYS_TO_A_HEAD
        loader = loader_of(kind, config, masked_lm_head=masked_lm_head)
        if weights:
            check_headers(name, source, config, loader, Memory(dtype, total_memory(place)), advice)
            module, report = loader.from_pretrained(
                source,
                config=config,
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        else:
            report = {"missing_keys": ()}
            make = loader.from_config if hasattr(loader, "from_config") else loader._from_config
            with without_weights():
                module = make(config, dtype=dtype)
                module.tie_weights()
        with panics_as(ModelError, f"the tokenizer of {name!r}"):
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except ModelError:
        raise
    except Exception as error:  # damaged files raise errors of any class; tokenizers raise a bare Exception
        where = f"directory {source!r}" if os.path.isdir(source) else "hub id (no such file or directory here)"
        reason = " ".join(str(error).split()).partition(" Model type should be one of")[0]  # hundreds of them
        raise ModelError(f"cannot load the model {name!r}, taken as a {where}: {reason}. {WAYS_TO_NAME}") from error
    check_missing(name, report["missing_keys"], advice)
    return module, tokenizer, kind
