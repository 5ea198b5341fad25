"""Attention over a packed row: what transformers' attention interface calls, and the layout that says who sees whom.

The layout is passed through the forward's keyword arguments, so that activation checkpointing has it again when it repeats a
layer in the backward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..device import path_of
from ..model.model import LoadedModel
from ..transfer import to_device
from .rows import Block

#: The name of `packed_attention` among transformers' attention functions.
NAME = "lossbook_packed"
#: What scaled_dot_product_attention may run on CUDA. cuDNN, its first choice on new GPUs, plans anew for every new shape.
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Call(NamedTuple):
    """What one layer asks of attention: heads of queries and of keys, their sizes, dtype, scale, and tokens seen."""

    heads: int
    key_heads: int
    depth: int
    value_depth: int
    dtype: torch.dtype
    scaling: float | None
    window: int | None


class Layout(ABC):
    """A packed row as attention reads it. One object: with a tuple torch.compile would recompile for each number of blocks.

    blocks   of the row, in its order
    arrays   int64 and int32 arrays that `attend` reads on the model's device, by name
    tensors  those arrays there; set them, or call `to`
    calls    where it is a set, what layers ask is noted in it
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks
        self.arrays: dict[str, np.ndarray] = {}
        self.tensors: dict[str, Tensor] = {}
        self.calls: set[Call] | None = None

    def to(self, device: torch.device) -> Self:
        """Put the arrays on a device; returns this layout."""
        self.tensors = to_device({name: torch.from_numpy(array) for name, array in self.arrays.items()}, device)
        return self

    @abstractmethod
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, dropout: float, scaling: float | None, window: int | None
    ) -> Tensor:
        """query [T, H, D], key [T, G, D], value [T, G, E] to [T, H, E]. window: how many tokens a token sees, itself included."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: Layout | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query [1, H, T, D], key and value [1, G, T, D] of one packed row to [1, T, H, D].

    sliding_window: how many tokens a token sees, itself included; None for all. Raises NotImplementedError for soft-capped
    scores, sinks and masks of an architecture's own; probes then refuse it.
    """
    _refuse_unknown(
        {
            "a forward that does not hand its options down to attention": packed_layout is None,
            "several rows": len(query) != 1,
            "soft-capped scores": softcap is not None,
            "attention sinks": s_aux is not None,
            "a mask or bias of its own": others.get("position_bias") is not None or attention_mask is not None,
            "a sliding window that is not passed to attention": sliding_window is None and _should_slide(module),
        },
        module,
    )
    assert packed_layout is not None
    # [T, heads, D]; not x[0], whose backward copies into zeros
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    if packed_layout.calls is not None:
        shape = (q.shape[1], k.shape[1], q.shape[2], v.shape[2])
        packed_layout.calls.add(Call(*shape, q.dtype, scaling, sliding_window))
    return packed_layout.attend(q, k, v, dropout=dropout, scaling=scaling, window=sliding_window)[None], None


def _refuse_unknown(reasons: dict[str, bool], module: nn.Module) -> None:
    """Raise NotImplementedError with the first reason that is true, and the layer."""
    for reason, present in reasons.items():
        if present:
            raise NotImplementedError(f"layer {getattr(module, 'layer_idx', '?')} has {reason}")


def _should_slide(module: nn.Module) -> bool:
    """Whether the configuration gives this layer a sliding window."""
    if torch.compiler.is_compiling():  # a probe has asked; here each layer's number would be compiled on its own
        return False
    config: Any = getattr(module, "config", None)
    if getattr(config, "sliding_window", None) is None:
        return False
    kinds, index = getattr(config, "layer_types", None), getattr(module, "layer_idx", None)
    return kinds is None or index is None or kinds[index] == "sliding_attention"


@contextmanager
def attending(model: LoadedModel, implementation: str | None = None) -> Iterator[None]:
    """Inside, the model's layers call one of transformers' attention functions; afterwards the one they called before.

    None changes nothing but what scaled_dot_product_attention may run on CUDA.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
    configs = [] if implementation is None else model.attention_configs
    before = [config._attn_implementation_internal for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = implementation  # set_attn_implementation walks all modules
        with _backends(model.device):
            yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation_internal = name


def _backends(device: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if path_of(device) == "cpu" else sdpa_kernel(BACKENDS)
