"""`KeptProduct`: the product of hidden states and weight, kept from forward to backward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class KeptProduct:
    """The product h Wᵀ [C, V] of C positions, stored tile by tile of columns.

    flat     [C · V]     in the product's own dtype, or a narrower one
    offsets  [tiles, C]  with a narrower dtype: each row's highest product up to that tile, subtracted before rounding, so
                         that the likeliest tokens are rounded least; else [0, C]
    """

    flat: Tensor
    offsets: Tensor
    tile_columns: int

    @classmethod
    def empty(cls, rows: Tensor, vocabulary: int, tile_columns: int, kept_dtype: torch.dtype | None) -> KeptProduct:
        """Memory for the product of rows [C, d]."""
        dtype = kept_dtype or rows.dtype
        tiles = -(-vocabulary // tile_columns) if dtype != rows.dtype else 0
        flat = torch.empty(len(rows) * vocabulary, dtype=dtype, device=rows.device)
        return cls(flat, torch.empty((tiles, len(rows)), dtype=rows.dtype, device=rows.device), tile_columns)

    @property
    def is_exact(self) -> bool:
        """Whether the product is stored unrounded."""
        return not len(self.offsets)

    def tile(self, tile: slice) -> Tensor:
        """[C, columns] as stored, a view."""
        rows = self.offsets.shape[1]
        return self.flat[rows * tile.start : rows * tile.stop].view(rows, tile.stop - tile.start)

    def put(self, product: Tensor, tile: slice) -> None:
        """Store a tile's product, rounded."""
        before = self.offsets[tile.start // self.tile_columns - 1] if tile.start else None
        offset = product.amax(dim=1) if before is None else torch.maximum(before, product.amax(dim=1))
        self.offsets[tile.start // self.tile_columns] = offset
        least = torch.finfo(self.flat.dtype).min  # an infinity would give NaN as an entropy's gradient
        self.tile(tile).copy_((product - offset[:, None]).clamp_(min=least))

    def product(self, tile: slice, rows: Tensor | None) -> Tensor:
        """[C, columns], or some of its rows: a copy, except for all rows of an exact product."""
        kept = self.tile(tile) if rows is None else self.tile(tile)[rows]
        if self.is_exact:
            return kept
        offset = self.offsets[tile.start // self.tile_columns]
        return kept.to(offset.dtype).add_((offset if rows is None else offset[rows])[:, None])
