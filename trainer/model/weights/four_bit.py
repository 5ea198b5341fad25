"""4-bit base weights: the linear layers of a decoder's layers in NF4, under adapters that are trained (QLoRA).

The format and its use are Dettmers et al. 2023 (arXiv:2305.14314); bitsandbytes quantizes and multiplies. Products are made
in the dtype in which the model was loaded, with the weights dequantized to it.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Iterator
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ....datums.errors import ModelError, did_you_mean
from ...choices import BaseWeights
from ..model import LoadedModel

#: The dtypes that bitsandbytes quantizes and multiplies in.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_base_weights(base_weights: str) -> None:
    """Raise ModelError for an unknown choice, and for 4-bit weights where bitsandbytes is missing."""
    choices = get_args(BaseWeights)
    if base_weights not in choices:
        hint = did_you_mean(str(base_weights), choices)
        raise ModelError(f"base_weights is one of {', '.join(map(repr, choices))}, not {base_weights!r}.{hint}")
    if base_weights == "4bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("4-bit base weights need bitsandbytes, which is not installed: pip install 'lossbook[cuda]'")


def quantize_base(model: LoadedModel) -> None:
    """Put 4-bit layers in the place of the linear layers inside the decoder's layers, in place, on the model's device.

    Embeddings, norms, biases and the output head stay as they are. Raises ModelError for an encoder, a device or a dtype that
    has no 4-bit product, and for a layer with a matrix that no plain linear layer holds, such as fused experts.
    """
    if model.kind != "decoder":
        raise ModelError(
            f"{model.name} is an encoder, and 4-bit base weights are for decoders: leave base_weights='full'"
        )
    if model.device.type not in ("cpu", "cuda"):
        raise ModelError(f"4-bit base weights run on a CPU or a GPU of torch.cuda, not on {model.device}")
    quantized: dict[int, nn.Module] = {}  # an architecture may use one layer in several places
    for name, layer in list(_linear_layers(model)):
        owner, _, leaf = name.rpartition(".")
        if id(layer) not in quantized:
            quantized[id(layer)] = _quantized(layer, model.device)
        setattr(model.backbone.get_submodule(owner), leaf, quantized[id(layer)])
    if not quantized:
        raise ModelError(f"{model.name} ({type(model.module).__name__}) has no linear layer to quantize")
    model.base_weights = "4bit"


def dense_weight(layer: Any) -> Tensor:
    """A linear layer's weight [out, in]; where it is 4-bit, dequantized to the dtype that it was quantized from."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return layer.weight
    return importlib.import_module("bitsandbytes.functional").dequantize_4bit(layer.weight.data, state)


def scales(weight: Tensor) -> dict[str, Tensor]:
    """What a 4-bit weight is dequantized with, beside its own bytes; nothing for another weight."""
    state = getattr(weight, "quant_state", None)
    return {} if state is None else state.as_dict(packed=True)


def number_count(model: LoadedModel) -> int:
    """How many numbers all weights of a model hold, adapters and a value head included; two 4-bit ones share a byte."""
    head = () if model.value_head is None else model.value_head.parameters()
    states = [(getattr(p, "quant_state", None), p) for p in (*model.module.parameters(), *head)]
    return sum(p.numel() if state is None else math.prod(state.shape) for state, p in states)


def _linear_layers(model: LoadedModel) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers inside the decoder's layers, which have a number in their names."""
    for name, module in model.backbone.named_modules(remove_duplicate=False):
        if not any(part.isdigit() for part in name.split(".")):
            continue
        kind = type(module)
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1 and kind is not nn.Linear:
                raise ModelError(
                    f"{name}.{leaf} of {model.name} cannot be quantized: it is no plain linear layer's ({kind.__name__}). "
                    "Leave base_weights='full'"
                )
            if parameter.dim() > 1 and parameter.dtype not in DTYPES:
                raise ModelError(
                    f"{name} of {model.name} is {parameter.dtype}, which has no 4-bit product: take float32"
                )
        if isinstance(module, nn.Linear):
            yield name, module


def _quantized(layer: nn.Linear, device: torch.device) -> nn.Module:
    nn4: Any = importlib.import_module("bitsandbytes").nn
    has_bias = layer.bias is not None
    new = nn4.Linear4bit(
        layer.in_features,
        layer.out_features,
        has_bias,
        compute_dtype=layer.weight.dtype,
        quant_type="nf4",
        device=torch.device("meta"),
    )
    # Some CPUs would repack the weight at the first product without a gradient, into a form that has no backward.
    new.support_avx512bf16_for_cpu = False
    new.weight = nn4.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=new).to(device)
    new.bias = nn.Parameter(layer.bias.data.to(device), requires_grad=False) if has_bias else None
    return new.train(layer.training)
