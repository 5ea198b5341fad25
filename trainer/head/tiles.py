"""One tile of the head: product, logits, running statistics of the softmax, and the gradient of the logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Transform(NamedTuple):
    """From product to logits: `softcap · tanh(z / softcap)` of `z = scale · (product + bias)`."""

    softcap: float | None
    scale: float


class Upstream(NamedTuple):
    """Gradients of the outputs at some positions: [C, K], then [C] each; None for outputs without one."""

    logprobs: Tensor | None
    logsumexp: Tensor | None
    entropy: Tensor | None
    mean: Tensor | None


def slices(length: int, size: int) -> Iterator[slice]:
    """0 to length in steps of size."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The wider of the two: bfloat16 hidden states must not round away a float32 LoRA delta in the weight."""
    return torch.promote_types(hidden.dtype, weight.dtype)


def statistics_dtype(product: torch.dtype) -> torch.dtype:
    """The dtype of everything but the products: float32, or float64 where the products are."""
    return torch.float64 if product == torch.float64 else torch.float32


def logits_of(product: Tensor, bias: Tensor | None, transform: Transform) -> Tensor:
    """Logits [C, columns] in float32 (float64 for float64) of a product, which is not changed.

    Where there is nothing to compute, the product itself is returned.
    """
    logits = product.to(statistics_dtype(product.dtype))
    if bias is not None:
        logits = logits + bias
    if transform.scale != 1.0:
        logits = logits * transform.scale
    if transform.softcap is not None:
        logits = (logits / transform.softcap).tanh_().mul_(transform.softcap)
    return logits


class RunningSoftmax:
    """Statistics of C positions' softmax, updated tile by tile (the online softmax of arXiv:1805.02867).

    Over the columns so far, `total` is Σ exp(z - highest), `weighted` is Σ exp(z - highest)·(z - highest), and `summed` is
    Σ z. The first two are rescaled whenever a tile holds a higher logit.
    """

    def __init__(self, targets: Tensor, dtype: torch.dtype, *, entropy: bool, mean: bool, topk: int) -> None:
        rows, device = len(targets), targets.device
        self.targets, self.topk = targets, topk
        self.highest = torch.full((rows,), -1e30, dtype=dtype, device=device)  # finite: 0 · inf would be NaN
        self.total = torch.zeros_like(self.highest)
        self.weighted = torch.zeros_like(self.highest) if entropy else None
        self.summed = torch.zeros_like(self.highest) if mean else None
        self.picked = torch.zeros(targets.shape, dtype=dtype, device=device)
        self.best = torch.empty((rows, 0), dtype=dtype, device=device)
        self.best_tokens = torch.empty((rows, 0), dtype=torch.int64, device=device)

    def add(self, logits: Tensor, tile: slice, scratch: Tensor) -> None:
        """Add a tile's logits. `scratch`, of the same shape, is overwritten; it may be the logits themselves."""
        here, column = columns_of(self.targets, tile)
        self.picked = torch.where(here, logits.gather(1, column), self.picked)
        if self.topk:
            self._add_best(logits, tile)
        if self.summed is not None:
            self.summed += logits.sum(dim=1)
        higher = torch.maximum(self.highest, logits.amax(dim=1))
        drop = self.highest - higher
        shrink = drop.exp()
        shifted = torch.sub(logits, higher[:, None], out=scratch)  # at most 0, so exp cannot overflow
        powers = shifted.exp_() if self.weighted is None else shifted.exp()
        if self.weighted is not None:
            self.weighted = shrink * (self.weighted + drop * self.total) + shifted.mul_(powers).sum(dim=1)
        self.total = shrink * self.total + powers.sum(dim=1)
        self.highest = higher

    def _add_best(self, logits: Tensor, tile: slice) -> None:
        values, tokens = logits.topk(min(self.topk, logits.shape[1]), dim=1)
        values = torch.cat([self.best, values], dim=1)
        tokens = torch.cat([self.best_tokens, tokens + tile.start], dim=1)
        self.best, order = values.topk(min(self.topk, values.shape[1]), dim=1)
        self.best_tokens = tokens.gather(1, order)

    def logsumexp(self) -> Tensor:
        """[C]"""
        return self.highest + self.total.log()

    def logprobs(self, logits: Tensor) -> Tensor:
        """[C, K] of logits [C, K]; subtracted in two steps, so that logprobs near 0 keep their digits at a large logsumexp."""
        return logits - self.highest[:, None] - self.total.log()[:, None]

    def entropy(self) -> Tensor:
        """[C]"""
        assert self.weighted is not None
        return self.total.log() - self.weighted / self.total

    def mean_logprobs(self, vocabulary: int) -> Tensor:
        """[C]"""
        assert self.summed is not None
        return self.summed / vocabulary - self.highest - self.total.log()


class Softmax(NamedTuple):
    """Statistics of C positions for the backward: logsumexp and entropy [C] (or [0]), and the target tokens [C, K]."""

    denominator: Tensor
    entropy: Tensor
    targets: Tensor


def tile_gradient(
    logits: Tensor,
    softmax: Softmax,
    upstream: Upstream,
    tile: slice,
    transform: Transform,
    vocabulary: int,
    out: Tensor,
) -> Tensor:
    """d loss / d product [C, columns] of one tile, in `out`, which may be the logits themselves.

    With p the softmax and g, s, e, m the gradients of logprobs [C, K], logsumexp, entropy H and mean logprob [C], a
    logit's gradient is onehots·g + p·(s - Σg - m) - e·p·(log p + H) + m / V, and soft cap and scale multiply it by their
    slopes.
    """
    softcap = transform.softcap
    slope = None if softcap is None else (logits / softcap).square_().neg_().add_(1)  # 1 - tanh²
    gradient = torch.sub(logits, softmax.denominator[:, None], out=out)  # log p
    g, s, e, m = upstream
    share = torch.zeros_like(softmax.denominator)
    for sign, term in ((-1, None if g is None else g.sum(dim=1)), (1, s), (-1, m)):
        share = share if term is None else share.add(term, alpha=sign)
    if e is None:
        gradient.exp_().mul_(share[:, None])
    else:
        probability = gradient.exp()
        # p · (share - e · (log p + H))
        gradient.add_(softmax.entropy[:, None]).mul_(-e[:, None]).add_(share[:, None]).mul_(probability)
    if m is not None:
        gradient.add_(m[:, None], alpha=1 / vocabulary)
    if g is not None:
        here, column = columns_of(softmax.targets, tile)
        gradient.scatter_add_(1, column, g.where(here, 0.0))
    if slope is not None:
        gradient.mul_(slope)
    return gradient if transform.scale == 1.0 else gradient.mul_(transform.scale)


def columns_of(targets: Tensor, tile: slice) -> tuple[Tensor, Tensor]:
    """Which targets [C, K] lie in the tile, and their column there (any column for the others)."""
    column = targets - tile.start
    width = tile.stop - tile.start
    return (column >= 0) & (column < width), column.clamp_(0, width - 1)
