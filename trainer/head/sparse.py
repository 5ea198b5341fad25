"""Vectors over the vocabulary, as SPLADE makes them: of each text the largest logit of every token, through log(1 + relu).

A [tokens, V] matrix is never in memory: products are computed in tiles of the vocabulary, and each tile leaves the largest
product of every text, and at which of its tokens it is, [N, V]. The backward goes through those tokens alone, tile by tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .logprobs import TILE_BYTES, Head, size_of
from .tiles import product_dtype, slices, statistics_dtype


def splade_vectors(hidden: Tensor, head: Head, sizes: Sequence[int]) -> Tensor:
    """[N, V] float32 (float64 for float64): max over a text's tokens of log(1 + relu(logit)), with its graph.

    hidden   [M, d]  of N texts, one after the other
    sizes    how many tokens each has, at least one

    Formal et al. 2021, SPLADE v2, arXiv:2109.10086 eq. 6. Logits rise with the products, so the largest of both is at the same
    token. Equally large ones: the first has the gradient.
    """
    largest = cast(Tensor, LargestProducts.apply(hidden, head.weight, tuple(sizes)))
    logits = largest if head.bias is None else largest + head.bias
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * (logits / head.softcap).tanh()
    return logits.relu().log1p()


class LargestProducts(torch.autograd.Function):
    """The largest product of each text's hidden states with every row of the head's weight, [N, V]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Tile by tile of the vocabulary; keeps at which token each of them is."""
        dtype = product_dtype(hidden, weight)
        rows = hidden.to(dtype)
        largest = rows.new_empty(len(sizes), len(weight), dtype=statistics_dtype(dtype))
        places = torch.empty(largest.shape, dtype=torch.int32, device=hidden.device)
        for tile in _tiles(hidden, len(weight)):
            product = rows @ weight[tile].to(dtype).t()
            start = 0
            for text, part in enumerate(product.split(sizes)):
                values, at = part.max(0)
                largest[text, tile], places[text, tile] = values.to(largest.dtype), (at + start).int()
                start += len(part)
        ctx.save_for_backward(hidden, weight, places)
        return largest

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Of the tokens at which the largest products are."""
        hidden, weight, places = ctx.saved_tensors
        (gradient,), (wants_hidden, wants_weight, _) = gradients, ctx.needs_input_grad
        of_hidden = torch.zeros_like(hidden, dtype=gradient.dtype) if wants_hidden else None
        of_weight = torch.empty_like(weight, dtype=gradient.dtype) if wants_weight else None
        for tile in _tiles(hidden, len(weight)):
            columns = gradient[:, tile]
            at = columns.new_zeros(len(hidden), columns.shape[1]).scatter_add(0, places[:, tile].long(), columns)
            if of_hidden is not None:
                of_hidden.addmm_(at, weight[tile].to(at.dtype))
            if of_weight is not None:
                of_weight[tile] = at.t() @ hidden.to(at.dtype)
        return (
            None if of_hidden is None else of_hidden.to(hidden.dtype),
            None if of_weight is None else of_weight.to(weight.dtype),
            None,
        )


def _tiles(hidden: Tensor, vocabulary: int) -> Any:
    """Slices of the vocabulary, of TILE_BYTES of float32 products each."""
    return slices(vocabulary, max(TILE_BYTES[size_of(hidden.device)] // (4 * max(len(hidden), 1)), 1))
