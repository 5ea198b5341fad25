"""Attention over a packed row in one call per layer for dtypes that FlashAttention has not: compiled flex_attention.

Keys and values stay where they lie. A token sees its part of the row up to itself, and its part's prefix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .attention import Layout
from .block_attention import BlockAttention
from .rows import Block
from .varlen import in_autocast, parts_of

#: Tokens of a tile; tiles that no query may see are left out.
TILE = 128
#: Who sees whom: (batch, head, query, key) to a bool, as flex_attention asks it.
Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class FlexAttention(Layout):
    """One call for the row.

    arrays   begins, prefix_starts, prefix_stops, places [T] int32: for each token, where in the row its part begins, where its
             part's prefix starts and stops (twice 0 for none), and its place in its sequence
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__(blocks)
        lengths, prefixes = parts_of(blocks)
        self._lengths, self._prefixes, self._starts = lengths, prefixes, np.cumsum(lengths) - lengths
        begins = np.repeat(self._starts, lengths)
        starts, stops = np.repeat(prefixes, lengths, axis=0).T
        places = np.arange(len(begins)) - begins + stops - starts
        named = {"begins": begins, "prefix_starts": starts, "prefix_stops": stops, "places": places}
        self.arrays = {name: array.astype(np.int32) for name, array in named.items()}
        self._masks: dict[int | None, Any] = {}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, dropout: float, scaling: float | None, window: int | None
    ) -> Tensor:
        """As `Layout.attend` says."""
        if dropout:  # flex_attention has none
            by_blocks = BlockAttention(self.blocks).to(query.device)
            return by_blocks.attend(query, key, value, dropout=dropout, scaling=scaling, window=window)
        q, k, v = (x.transpose(0, 1)[None] for x in in_autocast(query, key, value))
        grouped = query.shape[1] != key.shape[1]
        if query.device.type == "cpu":
            attended = scaled_dot_product_attention(
                q, k, v, attn_mask=self.dense(window), scale=scaling, enable_gqa=grouped
            )
        else:
            attended = _compiled()(q, k, v, block_mask=self.mask(window), scale=scaling, enable_gqa=grouped)
        return attended[0].transpose(0, 1)

    def sees(self, window: int | None) -> Sees:
        """Who sees whom, for queries and keys by their places in the row."""
        begins, starts, stops, places = (self.tensors[name] for name in self.arrays)
        # As a tensor, for the window as a number would be compiled again for each.
        first = torch.zeros_like(places) if window is None else places - (window - 1)

        def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            own = (key >= begins[query]) & (key <= query)
            prefix = (key >= starts[query]) & (key < stops[query])
            return (own | prefix) & (places[key] >= first[query])

        return sees

    def dense(self, window: int | None) -> Tensor:
        """[T, T] bool, queries by keys: for CPUs, where flex_attention has no backward."""
        rows = torch.arange(len(self.arrays["begins"]), device=self.tensors["begins"].device)
        return self.sees(window)(rows, rows, rows[:, None], rows[None])

    def mask(self, window: int | None) -> Any:
        """flex_attention's BlockMask, made once for each window. Its tiles are known from the layout; no [T, T] is made."""
        if window not in self._masks:
            from torch.nn.attention.flex_attention import BlockMask

            seen = self.tiles(window)
            order = np.argsort(~seen, axis=1, kind="stable")  # the seen ones first
            device, tokens = self.tensors["begins"].device, len(self.arrays["begins"])
            counts, indices = (
                torch.from_numpy(x.astype(np.int32))[None, None].to(device) for x in (seen.sum(1), order)
            )
            self._masks[window] = BlockMask.from_kv_blocks(
                counts, indices, BLOCK_SIZE=TILE, mask_mod=self.sees(window), seq_lengths=(tokens, tokens)
            )
        return self._masks[window]

    def tiles(self, window: int | None) -> np.ndarray:
        """[tiles, tiles] bool, queries by keys: whether a query of one may see a key of the other."""
        count = -(-len(self.arrays["begins"]) // TILE)
        seen = np.zeros((count, count), dtype=bool)
        for begin, length, (start, stop) in zip(self._starts, self._lengths, self._prefixes, strict=True):
            for tile in range(begin // TILE, (begin + length - 1) // TILE + 1):
                first, last = max(begin, tile * TILE), min(begin + length, (tile + 1) * TILE) - 1
                hidden = 0 if window is None else max(0, (stop - start) + (first - begin) - window + 1)
                if start + hidden < stop:
                    seen[tile, (start + hidden) // TILE : (stop - 1) // TILE + 1] = True
                own = begin + max(0, hidden - (stop - start))
                seen[tile, own // TILE : last // TILE + 1] = True
        return seen


@functools.cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)  # rows of any length run what was tried on one
