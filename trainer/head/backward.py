"""The head's backward: gradients of hidden states, weight and bias, summed over blocks of positions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..device import path_of
from .products import add_product, times_transposed
from .saved import KeptProduct
from .tiles import (
    Softmax,
    Transform,
    Upstream,
    logits_of,
    product_dtype,
    slices,
    statistics_dtype,
    tile_gradient,
)

Rows = slice | Tensor


class Block(NamedTuple):
    """Some positions that go through the backward together."""

    rows: Rows  # their indices among all positions
    hidden: Tensor  # [C, d] in the product's dtype
    softmax: Softmax
    upstream: Upstream
    kept: KeptProduct | None  # of a whole part of the positions
    positions: Tensor | None  # their indices in that part; None for all of it


class KnownRows(NamedTuple):
    """The only positions that have a gradient, ascending: [R] int64 on the host, and where the head is."""

    here: np.ndarray
    there: Tensor


def rows_with_gradient(upstream: Upstream, known: KnownRows | None) -> KnownRows | None:
    """Positions with a non-zero gradient, as far as the host can see; None where all may have one.

    A custom loss reads every position but often gives prompts weight 0, and a clipped token has no gradient either. On a CPU
    the gradients show it. Elsewhere the host would have to wait for the device, in the middle of the backward, to learn how
    many rows there are, so that it goes by what is `known`.
    """
    if any(grad is not None and path_of(grad.device) != "cpu" for grad in upstream):
        return known
    nonzero = [grad != 0 if grad.ndim == 1 else (grad != 0).any(dim=1) for grad in upstream if grad is not None]
    any_nonzero = torch.stack(nonzero).any(dim=0)
    if bool(any_nonzero.all()):
        return None
    rows = any_nonzero.nonzero().squeeze(1)
    return KnownRows(rows.numpy(), rows)


def recomputed_blocks(
    hidden: Tensor, dtype: torch.dtype, softmax: Softmax, upstream: Upstream, size: int, known: KnownRows | None
) -> list[Block]:
    """The positions with a gradient, `size` at a time."""
    rows = rows_with_gradient(upstream, known)
    parts: Iterable[Rows] = slices(len(hidden), size) if rows is None else rows.there.split(size)
    return [_block(part, hidden, dtype, softmax, upstream, None, None) for part in parts]


def kept_blocks(
    hidden: Tensor,
    dtype: torch.dtype,
    softmax: Softmax,
    upstream: Upstream,
    kept: Sequence[tuple[slice, KeptProduct]],
    known: KnownRows | None = None,
) -> list[Block]:
    """The positions with a gradient, in the parts whose products were kept."""
    rows = rows_with_gradient(upstream, known)
    blocks = []
    for part, store in kept:
        if rows is None:
            blocks.append(_block(part, hidden, dtype, softmax, upstream, store, None))
            continue
        start, stop = np.searchsorted(rows.here, [part.start, part.stop])
        inside = rows.there[start:stop]
        if len(inside):
            blocks.append(_block(inside, hidden, dtype, softmax, upstream, store, inside - part.start))
    return blocks


def _block(
    rows: Rows,
    hidden: Tensor,
    dtype: torch.dtype,
    softmax: Softmax,
    upstream: Upstream,
    kept: KeptProduct | None,
    positions: Tensor | None,
) -> Block:
    entropy = softmax.entropy[rows] if len(softmax.entropy) else softmax.entropy
    some = Softmax(softmax.denominator[rows], entropy, softmax.targets[rows])
    gradients = Upstream(*(None if gradient is None else gradient[rows] for gradient in upstream))
    return Block(rows, hidden[rows].to(dtype), some, gradients, kept, positions)


class Gradients:
    """d loss / d hidden, weight and bias, summed block by block; None for those that need none.

    Sums are float32 whatever the parameter's dtype: in bfloat16 a small tile would be rounded away in the running sum.
    With a single call of `add` the weight's sum needs a float32 buffer of one tile only.
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: Sequence[bool], *, is_one_call: bool
    ) -> None:
        self._product = product_dtype(hidden, weight)
        self._dtype = dtype = statistics_dtype(self._product)
        self._dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        self._is_fresh = True
        self._hidden = torch.zeros_like(hidden, dtype=dtype) if needs[0] else None
        self._weight = torch.empty_like(weight, dtype=weight.dtype if is_one_call else dtype) if needs[1] else None
        self._bias = torch.zeros_like(bias, dtype=dtype) if needs[2] and bias is not None else None

    def add(
        self, blocks: Sequence[Block], weight: Tensor, bias: Tensor | None, transform: Transform, tile_columns: int
    ) -> None:
        """Tile by tile: the logits, their gradient, then its products with weight and hidden.

        A tile's rows of the weight's gradient are complete before the next tile starts, so they are written once.
        """
        if not blocks:
            return
        sums = [None if self._hidden is None else self._hidden[block.rows] for block in blocks]  # a slice gives a view
        scratch = torch.empty(
            max(len(block.hidden) for block in blocks) * tile_columns, dtype=self._product, device=weight.device
        )
        for tile in slices(len(weight), tile_columns):
            columns = weight[tile].to(self._product)
            weight_sum, is_first = self._weight_sum(tile), self._is_fresh
            for block, hidden_sum in zip(blocks, sums, strict=True):
                product, out = _product(block, columns, tile, scratch)
                logits = logits_of(product, None if bias is None else bias[tile], transform)
                out = out if logits is product else logits
                gradient = tile_gradient(logits, block.softmax, block.upstream, tile, transform, len(weight), out)
                narrow = gradient.to(self._product)
                if hidden_sum is not None:
                    add_product(hidden_sum, narrow, columns)
                if weight_sum is not None:
                    add_product(weight_sum, narrow.t(), block.hidden, is_first=is_first)
                    is_first = False
                if self._bias is not None:
                    self._bias[tile] += gradient.sum(dim=0)
            if self._weight is not None and weight_sum is not None and weight_sum.dtype != self._weight.dtype:
                self._weight[tile] = weight_sum
        self._is_fresh = False
        for block, hidden_sum in zip(blocks, sums, strict=True):
            if self._hidden is not None and hidden_sum is not None and isinstance(block.rows, Tensor):
                self._hidden[block.rows] = hidden_sum

    def finished(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients in the dtypes of hidden, weight and bias."""
        if self._is_fresh and self._weight is not None:
            self._weight.zero_()
        sums = (self._hidden, self._weight, self._bias)
        return tuple(None if one is None else one.to(dtype) for one, dtype in zip(sums, self._dtypes, strict=True))  # type: ignore[return-value]

    def _weight_sum(self, tile: slice) -> Tensor | None:
        """Where a tile's rows of the weight's gradient are summed: in place, or in a buffer where that would round."""
        if self._weight is None:
            return None
        rows = self._weight[tile]
        return rows if rows.dtype == self._dtype else torch.empty_like(rows, dtype=self._dtype)


def _product(block: Block, columns: Tensor, tile: slice, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """A block's product for one tile, and where to write its gradient: over the product unless that is kept."""
    rows, width = len(block.hidden), len(columns)
    buffer = scratch[: rows * width].view(rows, width)
    if block.kept is None:
        product = times_transposed(block.hidden, columns, buffer, in_place=False)
        return product, product
    product = block.kept.product(tile, block.positions)
    return product, buffer if block.kept.is_exact and block.positions is None else product
