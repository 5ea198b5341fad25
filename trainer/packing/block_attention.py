"""Attention over a packed row, block by block: what a CPU runs, and what serves every model that packs.

Within a block attention is plain causal attention, which needs no mask. Where sequences share a prefix, its keys and
values come first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..device import path_of
from .attention import Layout
from .rows import Block


class BlockAttention(Layout):
    """One call of scaled_dot_product_attention for each block."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__(blocks)
        for number, block in enumerate(blocks):
            if block.padded is not None and block.unpadded is not None:
                self.arrays |= {f"padded {number}": block.padded, f"unpadded {number}": block.unpadded}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, dropout: float, scaling: float | None, window: int | None
    ) -> Tensor:
        """As `Layout.attend` says."""
        return _uncompiled(self, query, key, value, dropout, scaling, window)

    def by_blocks(
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, window: int | None
    ) -> Tensor:
        """`attend` itself."""
        sizes = [block.tokens for block in self.blocks]
        parts = zip(query.split(sizes), key.split(sizes), value.split(sizes), strict=True)
        attended = [
            self._attend(number, queries, (keys, values), self._prefix(number, key, value), dropout, scaling, window)
            for number, (queries, keys, values) in enumerate(parts)
        ]
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    def _prefix(self, number: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor] | None:
        prefix = self.blocks[number].prefix
        return None if prefix is None else (keys[slice(*prefix)], values[slice(*prefix)])

    def _attend(
        self,
        number: int,
        query: Tensor,
        own: tuple[Tensor, Tensor],
        prefix: tuple[Tensor, Tensor] | None,
        dropout: float,
        scaling: float | None,
        window: int | None,
    ) -> Tensor:
        """Attention of one block: [tokens, heads, D] in and out. own, prefix: keys and values."""
        rows = len(self.blocks[number].lengths)
        padded, unpadded = (self.tensors.get(f"{name} {number}") for name in ("padded", "unpadded"))
        q, k, v = (_as_rows(x, rows, padded) for x in (query, *own))
        if prefix is not None:
            k, v = (torch.cat([x.expand(rows, *x.shape), y], dim=1) for x, y in zip(prefix, (k, v), strict=True))
        mask = _mask(q.shape[1], k.shape[1], window, q.device)
        if (
            mask is not None and path_of(q.device) != "cpu"
        ):  # only the slowest kernel takes a mask and fewer heads of keys
            k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
        attended = scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=q.shape[2] != k.shape[2],
        )
        flat = attended.transpose(1, 2).flatten(0, 1)
        return flat if unpadded is None else flat.index_select(0, unpadded)


#: torch.compile steps over it: it would compile again for each number of blocks.
_uncompiled: Any = torch.compiler.disable(BlockAttention.by_blocks)


def _as_rows(tokens: Tensor, rows: int, padded: Tensor | None) -> Tensor:
    """[tokens, heads, D] to [B, L, heads, D]."""
    return (tokens if padded is None else tokens.index_select(0, padded)).unflatten(0, (rows, -1))


def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """[queries, keys] bool, where the last query sees the last key; None where causal attention needs no mask."""
    if queries == keys and (window is None or keys <= window):
        return None
    back = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    seen = back >= 0
    return seen if window is None else seen & (back < window)
