"""Attention over a packed row in one call per layer: `torch.nn.attention.varlen`, which is FlashAttention on CUDA.

    row      [p0 p1 p2 p3 | c4 c5 | d4 d5 d6]            queries lie as they are
    keys     [p0 p1 p2 p3 | p0 p1 p2 p3 c4 c5 | p0 p1 p2 p3 d4 d5 d6]

A part's keys are those of its prefix, then its own, and the last query sees the last key. So shared prefixes cost one index.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ...losses.batch.packed import blocks as ranges
from .attention import Layout
from .block_attention import BlockAttention
from .rows import Block

#: FlashAttention takes heads whose size is a multiple of this.
DEPTH = 8


class VarlenAttention(Layout):
    """One call for the row. Parts are a whole sequence each, a prefix, or the rest of a sequence after its prefix.

    arrays   starts [P + 1] int32 of P parts' queries, key_starts [P + 1] int32 of their keys, and keys [K] int64, where in
             the row each key lies; without keys they lie as the queries do
    longest, longest_keys   tokens and keys of the longest part

    Raises NotImplementedError where this torch has no such operation.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__(blocks)
        lengths, prefixes = parts_of(blocks)
        starts = np.cumsum(lengths) - lengths
        shared = prefixes[:, 1] - prefixes[:, 0]
        self.longest, self.longest_keys = int(lengths.max()), int((shared + lengths).max())
        self.arrays = {"starts": _boundaries(lengths), "key_starts": _boundaries(shared + lengths)}
        if shared.any():
            pieces = np.stack([prefixes[:, 0], starts], 1), np.stack([shared, lengths], 1)
            self.arrays["keys"] = ranges(*(each.reshape(-1) for each in pieces))
        self._operation, self._grouped = _operation()

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, dropout: float, scaling: float | None, window: int | None
    ) -> Tensor:
        """As `Layout.attend` says."""
        if dropout:  # the operation has none
            return self._by_blocks.to(query.device).attend(
                query, key, value, dropout=dropout, scaling=scaling, window=window
            )
        depth, width = query.shape[-1], value.shape[-1]
        query, key, value = _in_one_shape(query, key, value)
        if "keys" in self.tensors:
            key, value = _Gathered.apply(key, value, self.tensors["keys"])
        left = -1 if window is None or window >= self.longest_keys else window - 1
        attended = self._operation(
            query,
            key,
            value,
            self.tensors["starts"],
            self.tensors["key_starts"],
            self.longest,
            self.longest_keys,
            scale=depth**-0.5 if scaling is None else scaling,
            window_size=(left, 0),
            **(self._grouped if query.shape[1] != key.shape[1] else {}),
        )
        return attended if attended.shape[-1] == width else attended[..., :width]

    @cached_property
    def _by_blocks(self) -> BlockAttention:
        return BlockAttention(self.blocks)


def parts_of(blocks: Sequence[Block]) -> tuple[np.ndarray, np.ndarray]:
    """[P] tokens of each part of a row, and [P, 2] where its prefix starts and stops, twice 0 for none."""
    lengths = np.array([length for block in blocks for length in block.lengths], dtype=np.int64)
    prefixes = np.array([block.prefix or (0, 0) for block in blocks for _ in block.lengths], dtype=np.int64)
    return lengths, prefixes


def _boundaries(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _operation() -> tuple[Callable[..., Any], dict[str, bool]]:
    """varlen_attn, and what it takes where there are fewer heads of keys; its signature has moved from release to release.

    Raises NotImplementedError where this torch has none that can serve.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise NotImplementedError(f"torch {torch.__version__} has no torch.nn.attention.varlen") from error
    parameters = inspect.signature(varlen_attn).parameters
    if missing := [name for name in ("scale", "window_size") if name not in parameters]:
        raise NotImplementedError(f"varlen_attn of torch {torch.__version__} has no {' and no '.join(missing)}")
    return varlen_attn, {"enable_gqa": True} if "enable_gqa" in parameters else {}


def _in_one_shape(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """In autocast's dtype, where that is on, and padded to one size of head; zeros in queries and keys change no score."""
    depth = max(query.shape[-1], value.shape[-1])
    depth += -depth % DEPTH
    tensors = in_autocast(query, key, value)
    return [x if x.shape[-1] == depth else pad(x, (0, depth - x.shape[-1])) for x in tensors]


def in_autocast(*tensors: Tensor) -> list[Tensor]:
    """The tensors in autocast's dtype, where that is on, as scaled_dot_product_attention takes them."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors]


class _Gathered(torch.autograd.Function):
    """Rows of key and value by index; their gradients are added up in float32 at least, since a prefix has many."""

    @staticmethod
    def forward(ctx: Any, key: Tensor, value: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows)
        ctx.tokens = len(key)
        return key.index_select(0, rows), value.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (rows,) = ctx.saved_tensors
        key, value = gradients
        both = torch.cat([key, value], dim=-1).to(torch.promote_types(key.dtype, torch.float32))
        summed = both.new_zeros(ctx.tokens, *both.shape[1:]).index_add_(0, rows, both)
        keys, values = summed.to(key.dtype).split([key.shape[-1], value.shape[-1]], dim=-1)
        return keys, values, None
