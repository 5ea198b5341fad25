"""Prepacked weights for sampling: adapters merged once, and weights in oneDNN's layout for few rows.

A step of decoding multiplies every weight with a handful of rows. oneDNN does that up to twice as fast with a weight in its
own layout; the conversion takes about the time that ten steps save.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..device import path_of
from ..head.logprobs import Head
from ..model.model import LoadedModel

Product = Callable[[Tensor], Tensor]
#: From this many steps on, prepacking saves more time than it takes.
WORTHWHILE_STEPS = 16


@contextmanager
def prepacked_weights(model: LoadedModel, steps: int) -> Iterator[Product]:
    """Inside, the linear layers of a model's backbone use prepacked weights; yields the function hidden states -> logits.

    steps: forward passes to come; below WORTHWHILE_STEPS nothing is prepacked.

    Prepacked weights are copies; the model's own are not written to. The layers' `forward` is replaced inside and restored
    afterwards, also after an error. Nothing is prepacked where memory is short, or in bfloat16: a merged adapter would be
    rounded, and logprobs would differ from the trainer's.
    """
    layers = [layer for layer in _linear_layers(model.backbone) if "forward" not in vars(layer)]
    head = model.head()
    weights = [_base(layer).weight for layer in layers]
    worthwhile = steps >= WORTHWHILE_STEPS and _fits([*weights, head.weight], model.device)
    products = [(layer, _prepacked(layer)) for layer in layers] if worthwhile else []
    logits = _logits(head) if worthwhile else head.logits
    replaced = []
    try:
        for layer, product in products:
            if product is not None:
                layer.forward = product
                replaced.append(layer)
        yield logits
    finally:
        for layer in replaced:
            del layer.forward


def _linear_layers(backbone: nn.Module) -> list[Any]:
    """Plain linear layers, and LoRA layers around one; not the layers inside a LoRA layer."""
    from transformers.pytorch_utils import Conv1D

    layers: list[Any] = []
    inside: set[nn.Module] = set()
    for layer in backbone.modules():
        if layer in inside:
            continue
        if hasattr(layer, "lora_A"):
            inside |= set(layer.modules())
        if type(_base(layer)) in (nn.Linear, Conv1D):
            layers.append(layer)
    return layers


def _base(layer: Any) -> Any:
    return layer.base_layer if hasattr(layer, "lora_A") else layer


def _prepacked(layer: Any) -> Product | None:
    """A function for the layer's product with W + scaling · B A; None where prepacking gains nothing."""
    base = _base(layer)
    weight = base.weight.detach()
    for name in layer.active_adapters if base is not layer else ():
        if name in layer.lora_A:
            weight = weight + layer.get_delta_weight(name)
    weight = weight if isinstance(base, nn.Linear) else weight.t()  # GPT-2's Conv1D has it [in, out]
    if _reorders(weight):
        return _reordered(weight, base.bias)
    return None if base is layer else lambda rows: nn.functional.linear(rows, weight, base.bias)


def _logits(head: Head) -> Product:
    """`head.logits`, with a reordered weight where that is possible."""
    if not _reorders(head.weight):
        return head.logits
    product = _reordered(head.weight.detach(), head.bias)

    def logits(hidden: Tensor) -> Tensor:
        values = product(hidden)
        if head.scale != 1.0:
            values *= head.scale
        return values if head.softcap is None else values.div_(head.softcap).tanh_().mul_(head.softcap)

    return logits


def _reordered(weight: Tensor, bias: Tensor | None) -> Product:
    reordered = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    bias = None if bias is None else bias.detach()
    return lambda rows: torch.ops.mkldnn._linear_pointwise(rows, reordered, bias, "none", [], "")


def _reorders(weight: Tensor) -> bool:
    return path_of(weight.device) == "cpu" and weight.dtype == torch.float32 and _onednn_reorders()


@cache
def _onednn_reorders() -> bool:
    """Whether this build of torch has the two operators, which torch.compile uses and which are undocumented."""
    try:
        weight, rows = (
            torch.arange(6.0, dtype=torch.float32, device="cpu").view(2, 3),
            torch.ones(1, 3, dtype=torch.float32, device="cpu"),
        )
        return torch.equal(_reordered(weight, None)(rows), rows @ weight.t())
    except (AttributeError, RuntimeError, TypeError):
        return False


def _fits(weights: list[Tensor], device: torch.device) -> bool:
    """Whether float32 (or float64) copies of the weights take at most half of the free memory."""
    if any(weight.dtype not in (torch.float32, torch.float64) for weight in weights):
        return False
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    elif device.type == "cpu" and hasattr(os, "sysconf"):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        return False
    return sum(weight.numel() * weight.element_size() for weight in weights) <= free // 2
