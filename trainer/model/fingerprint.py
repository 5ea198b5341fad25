"""A model's weights as one short text, so that cached results can be matched to the weights that gave them."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch

from ..shards import whole
from .weights.four_bit import scales

if TYPE_CHECKING:
    from torch import Tensor

    from .model import LoadedModel

#: Keys of a transformers config that do not affect what the model computes.
_NAMES_ONLY = ("_name_or_path", "transformers_version")


def weights_fingerprint(model: LoadedModel) -> str:
    """sha256, in hex, of the config and of every weight that the logprobs depend on: name, dtype, shape and content.

    An adapter whose B is zero changes nothing and is left out, so a fresh adapter's seed and rank do not matter. A value
    head is left out too. Reads all weights: about one second per gigabyte. Sharded ones are gathered one after the other.
    """
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NAMES_ONLY}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    parameters = dict(model.module.named_parameters())
    silent = {_layer(name) for name, weight in parameters.items() if ".lora_B." in name and not bool(weight.any())}
    for name, weight in sorted(parameters.items()):
        if ".lora_" in name:
            if _layer(name) in silent or model.lora is None:
                continue
            digest.update(f"{model.module.get_submodule(_layer(name)).scaling['default']} ".encode())  # type: ignore[index]
        digest.update(f"{name.replace('.base_layer', '')} {weight.dtype} {list(weight.shape)} ".encode())
        digest.update(_bytes(whole(weight)))
        for key, scale in scales(weight).items():
            digest.update(f"{key} ".encode())
            digest.update(_bytes(scale))
    return digest.hexdigest()


def _layer(name: str) -> str:
    """The layer that a parameter of an adapter belongs to."""
    return name.partition(".lora_")[0]


def _bytes(weight: Tensor) -> memoryview:
    """Of a copy: memory that NumPy has seen cannot be freed by FSDP any more."""
    return weight.detach().to("cpu", copy=True).contiguous().reshape(-1).view(torch.uint8).numpy().data
