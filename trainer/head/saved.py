"""What the head keeps of its product between forward and backward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class KeptProduct:
    """The product h Wᵀ [C, V] of C positions, each tile of columns in one piece.

    flat     [C · V]     in the product's own dtype, or a narrower one
    offsets  [tiles, C]  only with a narrower dtype: each row's highest product up to that tile, which was taken off
                         before rounding, so that what is rounded least are the likeliest tokens; else [0, C]
    """

    flat: Tensor
    offsets: Tensor
    tile_columns: int

    @classmethod
    def empty(cls, rows: Tensor, vocabulary: int, tile_columns: int, kept_dtype: torch.dtype | None) -> KeptProduct:
        """Room for the product of rows [C, d]."""
        dtype = kept_dtype or rows.dtype
        tiles = -(-vocabulary // tile_columns) if dtype != rows.dtype else 0
        flat = torch.empty(len(rows) * vocabulary, dtype=dtype, device=rows.device)
        return cls(flat, torch.empty((tiles, len(rows)), dtype=rows.dtype, device=rows.device), tile_columns)

    @property
    def is_exact(self) -> bool:
        """Whether it holds what the product gave, unrounded."""
        return not len(self.offsets)

    def tile(self, tile: slice) -> Tensor:
        """[C, columns] as kept, a view."""
        rows = self.offsets.shape[1]
        return self.flat[rows * tile.start : rows * tile.stop].view(rows, tile.stop - tile.start)

    def put(self, product: Tensor, tile: slice) -> None:
        """Keeps a tile's product, rounded."""
        before = self.offsets[tile.start // self.tile_columns - 1] if tile.start else None
        offset = product.amax(dim=1) if before is None else torch.maximum(before, product.amax(dim=1))
        self.offsets[tile.start // self.tile_columns] = offset
        least = torch.finfo(self.flat.dtype).min  # an infinity would give NaN as an entropy's gradient
        self.tile(tile).copy_((product - offset[:, None]).clamp_(min=least))

    def product(self, tile: slice, rows: Tensor | None) -> Tensor:
        """[C, columns], or of some rows: a copy unless it is all of them and exact."""
        kept = self.tile(tile) if rows is None else self.tile(tile)[rows]
        if self.is_exact:
            return kept
        offset = self.offsets[tile.start // self.tile_columns]
        return kept.to(offset.dtype).add_((offset if rows is None else offset[rows])[:, None])
