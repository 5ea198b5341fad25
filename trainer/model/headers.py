"""config.json against the headers of the weights, before any weight is read or any memory taken."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...datums.errors import ModelError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
#: A module per layer takes time and memory even without weights: this many times the layers of the weights, and no more, are
#: built. Architectures that use a layer several times, such as ALBERT, have more in config.json than in the weights.
MOST_USES = 100
#: The most layers at all, and the names of their number in config.json.
MOST_LAYERS = 2_000
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")
#: Parts of a layer that predicts several tokens ahead, which transformers' models do not have.
PREDICTING = ("eh_proj", "enorm", "hnorm", "shared_head")


@dataclass(frozen=True)
class Memory:
    """How many bytes there are, None where that is not known, and the dtype in which a model is going to take them."""

    dtype: torch.dtype
    total: int | None


def check_headers(name: str, source: str, config: Any, loader: Any, memory: Memory, advice: str = "") -> None:
    """Load the model on the meta device with the shapes in its safetensors headers, and check that no tensor is left
    over.

    name, source  the model, as the user named it and as transformers finds it
    loader        the class of transformers that is going to load it
    advice        what to say where parameters are missing, besides which

    Raises ModelError where the model needs more memory than there is, for a parameter whose shape config.json has otherwise,
    one that the weights lack, and one that the weights have but config.json leaves out: another layer, or a bias. Parameters
    of other parts, such as the head of another task, are left out without an error.
    """
    files = _files(source)
    state = _empty(files)
    _check_layer_count(name, config, state)
    with _quiet():
        model = without_memory(name, config, loader)
        if files:
            _check_largest(name, model, state)
        _check_memory(name, model, config, memory)
        if not files:
            return  # loading says so
        architecture: Any = type(model)
        model, report = architecture.from_pretrained(
            None,
            config=config,
            state_dict=state,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    mismatched = sorted((key, list(theirs), list(ours)) for key, theirs, ours in report["mismatched_keys"])
    if mismatched:
        key, theirs, ours = mismatched[0]
        others = f", and {len(mismatched) - 1} others" if len(mismatched) > 1 else ""
        raise _misfit(name, f"{key} has the shape {theirs}, by config.json it has {ours}{others}")
    check_missing(name, report["missing_keys"], advice)
    left_out = sorted(_left_out(model, report["unexpected_keys"]))
    if left_out:
        raise ModelError(
            f"the weights of {name!r} have {len(left_out)} parameters that its config.json leaves out, and the model would "
            f"compute something else without them: {', '.join(left_out[:3])}"
        )


def check_missing(name: str, missing: Sequence[str], advice: str = "") -> None:
    """ModelError where weights lack a parameter; an encoder's pooler is not used. advice: the error ends with it."""
    missing = sorted(key for key in missing if not key.startswith("pooler."))
    if missing:
        raise ModelError(
            f"the weights of {name!r} lack {len(missing)} parameters, which would stay random: {', '.join(missing[:3])}{advice}"
        )


def check_layers(name: str, source: str) -> None:
    """ModelError for a number of layers that no model has: transformers' configurations make lists of that length."""
    from transformers import PretrainedConfig

    for key, value in _sizes(PretrainedConfig.get_config_dict(source)[0]):
        if key.rpartition(".")[2] in LAYERS and value > MOST_LAYERS:
            raise ModelError(
                f"the config.json of {name!r} has {key} {value}; no model has more than {MOST_LAYERS} layers"
            )


def total_memory(device: torch.device, groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of memory and swap that this process may use, and those of the GPU it loads onto; None where not known.

    groups: where Linux says what a container may use, of its memory.
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return None
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # it may be "max"
            total = min(total, int((groups / file).read_text()))
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        total += 1024 * int(next(line for line in lines if line.startswith("SwapTotal")).split()[1])
    return total + (torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0)


def without_memory(name: str, config: Any, loader: Any) -> Any:
    """The model on the meta device. Raises ModelError where not even its sizes can be computed."""
    try:
        with torch.device("meta"):
            is_auto = hasattr(loader, "from_config")
            return loader.from_config(config, trust_remote_code=False) if is_auto else loader._from_config(config)
    except (RuntimeError, OverflowError) as error:
        if "overflow" not in str(error).lower():
            raise
        key, value = max(_sizes(config.to_dict()), key=lambda size: size[1])
        raise ModelError(
            f"the model {name!r} needs more memory than can be counted, by {key} {value} in config.json"
        ) from None


def _check_memory(name: str, model: Any, config: Any, memory: Memory) -> None:
    """ModelError where parameters and buffers, without gradients and activations, take more than all memory."""
    bytes_of: dict[str, int] = {}
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        width = memory.dtype.itemsize if isinstance(tensor, torch.nn.Parameter) else tensor.element_size()
        bytes_of[key] = tensor.numel() * width
    needed = sum(bytes_of.values())
    if memory.total is None or needed <= memory.total:
        return
    groups: dict[str, list[str]] = {}  # one parameter of all layers
    for key in bytes_of:
        groups.setdefault(re.sub(r"\.\d+\.", ".*.", key), []).append(key)
    largest = max(groups.values(), key=lambda keys: sum(bytes_of[key] for key in keys))
    parts = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    factor = max(len(largest), *parts[largest[0]].shape)
    sizes = _sizes(config.to_dict())
    # it may be a multiple of a number in config.json, such as three times it, or have two more
    key, value = max(sizes, key=lambda size: (size[1] == factor, size[1] > 2 and factor % size[1] <= 2, size[1]))
    raise ModelError(
        f"the model {name!r} needs {_gigabytes(needed)} in {str(memory.dtype).removeprefix('torch.')}, and there are "
        f"{_gigabytes(memory.total)} of memory. The largest part is {largest[0]} {list(parts[largest[0]].shape)}, by {key} "
        f"{value} in config.json"
    )


def _sizes(config: Mapping[str, Any], inside: str = "") -> list[tuple[str, int]]:
    """The positive whole numbers of config.json with their keys, but not ids of tokens."""
    sizes: list[tuple[str, int]] = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            sizes += _sizes(value, f"{inside}{key}.")
        elif type(value) is int and value > 0 and not str(key).endswith("_id"):
            sizes.append((f"{inside}{key}", value))
    return sizes


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"


def _files(source: str) -> list[str]:
    """The safetensors files of a folder or a hub id, downloaded where need be; none where there are none."""
    from transformers.utils.hub import cached_file

    def find(file: str) -> str | None:
        if Path(source).is_dir():
            path = Path(source) / file
            return str(path) if path.is_file() else None
        return cached_file(source, file, _raise_exceptions_for_missing_entries=False)

    if single := find(SINGLE):
        return [single]
    index = find(INDEX)
    if index is None:
        return []
    names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    shards = [find(file) for file in names]
    return [shard for shard in shards if shard is not None] if all(shards) else []


def _empty(files: Sequence[str]) -> dict[str, torch.Tensor]:
    """Tensors without memory, of the names, shapes and dtypes in the files' headers."""
    from safetensors import safe_open

    dtypes = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    state: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as stream:
            for key in stream.keys():  # noqa: SIM118  # not a mapping
                part = stream.get_slice(key)
                dtype = dtypes.get(part.get_dtype(), torch.float32)
                state[key] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
    return state


def _check_layer_count(name: str, config: Any, state: dict[str, torch.Tensor]) -> None:
    first = (re.search(r"\.(\d+)\.", f".{key}") for key in state)  # experts within layers have numbers too
    numbers = {int(match[1]) for match in first if match}
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if numbers and isinstance(layers, int) and not 1 <= layers <= MOST_USES * (max(numbers) + 1):
        raise _misfit(name, f"they have {max(numbers) + 1} layers, by config.json there are {layers}")


def _check_largest(name: str, model: Any, state: dict[str, torch.Tensor]) -> None:
    """A parameter that is larger than all weights together; building buffers of such a size takes memory already."""
    total = sum(tensor.numel() for tensor in state.values())
    for key, parameter in model.named_parameters():
        if parameter.numel() > total:
            ours, theirs = list(parameter.shape), list(state[key].shape) if key in state else "no such parameter"
            raise _misfit(name, f"{key} has the shape {ours} by config.json, the weights have {theirs}")


def _misfit(name: str, what: str) -> ModelError:
    return ModelError(f"the weights of {name!r} do not fit its config.json: {what}")


def _left_out(model: Any, unexpected: Sequence[str]) -> Iterator[str]:
    """The unexpected parameters of modules that the model has, and of further layers in its lists of layers."""
    base = f"{model.base_model_prefix}."
    known = {key.removeprefix(base) for key in model.state_dict()}
    lists = {prefix for key in known for prefix, _ in _places(key)}
    layers = {f"{prefix}{number}" for key in known for prefix, number in _places(key)}
    keys = {key: key.removeprefix(base) for key in unexpected}
    predicting = {
        f"{prefix}{number}"
        for key in keys.values()
        for prefix, number in _places(key)
        if key.removeprefix(f"{prefix}{number}.").split(".")[0] in PREDICTING
    }
    for original, key in keys.items():
        parent, _, own = key.rpartition(".")
        places = [(prefix, f"{prefix}{number}") for prefix, number in _places(key)]
        of_known_module = own in ("weight", "bias") and not known.isdisjoint((f"{parent}.weight", f"{parent}.bias"))
        further = any(prefix in lists and layer not in layers | predicting for prefix, layer in places)
        if of_known_module or further:
            yield original


def _places(key: str) -> list[tuple[str, str]]:
    """What stands before each number in a parameter's name, and the number."""
    return [(key[: match.start(1)], match[1]) for match in re.finditer(r"(?:^|(?<=\.))(\d+)(?=\.)", key)]


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' log without its report of a load, which is raised as an error here."""
    from transformers.utils import logging

    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
