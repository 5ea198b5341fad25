"""log softmax over the whole vocabulary, a tile of positions at a time, and the gradient of a loss that reads it.

`losses/loss/whole.py` calls a loss on one tile after the other. A tile is [t, V]: t follows from WHOLE_BYTES, so that memory
does not grow with positions or vocabulary. Of what a backward needs nothing is kept but the sums of the gradients, [positions, d],
[V, d] and [V].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .logprobs import Head, size_of
from .products import add_product, times_transposed
from .tiles import Transform, logits_of, product_dtype, slices, statistics_dtype

#: Bytes of one tile's log-probabilities; a loss has several tensors of that size at a time.
WHOLE_BYTES = {"cpu": 16 * 2**20, "other": 256 * 2**20}
#: Columns of a weight that is turned into a wider dtype at a time.
WIDENED_COLUMNS = 8192


def rows_in_tile(device: torch.device, vocabulary: int) -> int:
    """How many positions of a vocabulary a tile has on a device."""
    return max(1, WHOLE_BYTES[size_of(device)] // (4 * max(1, vocabulary)))


@dataclass(frozen=True, eq=False)
class WholeTile:
    """Some positions: logprobs [t, V] nats, logsumexp [t, 1] of their logits, and which of all positions they are."""

    part: slice
    logprobs: Tensor
    logsumexp: Tensor

    def logit_gradient(self, gradient: Tensor, transform: Transform) -> Tensor:
        """d loss / d product [t, V], in the memory of `gradient`, d loss / d logprobs."""
        gradient = gradient.contiguous()  # of a plain sum it is one number, expanded
        total = gradient.sum(1, keepdim=True)
        gradient = gradient.addcmul_(self.logprobs.exp(), total, value=-1)
        if transform.softcap is not None:
            slope = (self.logprobs + self.logsumexp).div_(transform.softcap).square_().neg_().add_(1)  # 1 - tanh²
            gradient = gradient.mul_(slope)
        return gradient if transform.scale == 1.0 else gradient.mul_(transform.scale)


def _tile_of(logits: Tensor, part: slice) -> WholeTile:
    """A tile of logits, which are overwritten."""
    logsumexp = torch.logsumexp(logits, 1, keepdim=True) if logits.shape[0] else logits[:, :1]
    return WholeTile(part, logits.sub_(logsumexp), logsumexp)


@dataclass(frozen=True, eq=False)
class HeadDistributions:
    """Those of hidden states [S, d] and a head."""

    hidden: Tensor
    head: Head

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Hidden states, weight and, where there is one, bias."""
        bias = self.head.bias
        return (self.hidden, self.head.weight) if bias is None else (self.hidden, self.head.weight, bias)

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return len(self.head.weight)

    @property
    def tile_rows(self) -> int:
        """How many positions fit into a tile."""
        return rows_in_tile(self.hidden.device, self.vocabulary)

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, rows: Tensor) -> HeadDistributions:
        return replace(self, hidden=self.hidden[rows])

    def leaf(self) -> HeadDistributions:
        """The same without its graph; what had one gets a gradient, where gradients are on."""
        wants = torch.is_grad_enabled()
        hidden, weight, *bias = (one.detach().requires_grad_(wants and one.requires_grad) for one in self.tensors)
        return replace(self, hidden=hidden, head=replace(self.head, weight=weight, bias=bias[0] if bias else None))

    def first(self, tokens: int) -> HeadDistributions:
        """Over the first tokens of the vocabulary alone."""
        if tokens == self.vocabulary:  # the gradient of a slice of all is a copy of it
            return self
        head = self.head
        cut = replace(head, weight=head.weight[:tokens], bias=None if head.bias is None else head.bias[:tokens])
        return HeadDistributions(self.hidden, cut)

    @staticmethod
    def joined(parts: Sequence[HeadDistributions]) -> HeadDistributions:
        """Those of several micro-batches, one after the other; they have one head."""
        return replace(parts[0], hidden=torch.cat([part.hidden for part in parts]))

    def tile(self, part: slice) -> WholeTile:
        """log softmax at a few positions."""
        head, dtype = self.head, product_dtype(self.hidden, self.head.weight)
        with torch.no_grad(), torch.autocast(self.hidden.device.type, enabled=False):
            rows = self.hidden[part].to(dtype)
            product = torch.empty((len(rows), self.vocabulary), dtype=dtype, device=rows.device)
            for columns, weight in _columns(head.weight, dtype):
                if columns is None:
                    product = times_transposed(rows, weight, product, in_place=False)
                else:
                    product[:, columns] = rows @ weight.t()
            logits = logits_of(product, head.bias, Transform(head.softcap, head.scale))
            return _tile_of(logits, part)

    def sums(self) -> HeadSums:
        """Sums of no tile yet."""
        return HeadSums(self)

    def size(self) -> Tensor:
        """[S]: the largest number of each hidden state, by magnitude."""
        return self.hidden.detach().abs().amax(1).float()


class HeadSums:
    """d loss / d hidden, weight and bias, in float32 at least until all are added."""

    def __init__(self, of: HeadDistributions) -> None:
        self._of = of
        self._product = product_dtype(of.hidden, of.head.weight)
        dtype = statistics_dtype(self._product)
        self._sums = [torch.zeros_like(one, dtype=dtype) if one.requires_grad else None for one in of.tensors]

    @torch.no_grad()
    def add(self, tile: WholeTile, gradient: Tensor) -> None:
        """Add those of a tile; `gradient` [t, V] is overwritten."""
        head, part = self._of.head, tile.part
        with torch.autocast(gradient.device.type, enabled=False):
            wide = tile.logit_gradient(gradient, Transform(head.softcap, head.scale))
            narrow, rows = wide.to(self._product), self._of.hidden[part].to(self._product)
            hidden, weight, *bias = self._sums
            if hidden is not None:
                for columns, own in _columns(head.weight, self._product):
                    add_product(hidden[part], narrow if columns is None else narrow[:, columns], own)
            if weight is not None:
                add_product(weight, narrow.t(), rows)
            for one in bias:
                if one is not None:
                    one += wide.sum(0)

    def finished(self) -> tuple[Tensor | None, ...]:
        """The gradients in the dtypes of hidden, weight and bias."""
        return tuple(
            None if one is None else one.to(like.dtype) for one, like in zip(self._sums, self._of.tensors, strict=True)
        )


@dataclass(frozen=True, eq=False)
class LogitDistributions:
    """Those of logits [P, V] that are there, divided by a temperature, at some of their positions."""

    logits: Tensor
    rows: Tensor | None
    temperature: float = 1.0

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The logits."""
        return (self.logits,)

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.logits.shape[1]

    @property
    def tile_rows(self) -> int:
        """How many positions fit into a tile."""
        return rows_in_tile(self.logits.device, self.vocabulary)

    def __len__(self) -> int:
        return len(self.logits if self.rows is None else self.rows)

    def __getitem__(self, rows: Tensor) -> LogitDistributions:
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def at(self, part: slice) -> slice | Tensor:
        """Which of the logits' positions a tile has."""
        return part if self.rows is None else self.rows[part]

    def tile(self, part: slice) -> WholeTile:
        """log softmax at a few positions."""
        given = self.logits.detach()[self.at(part)]
        wide = given.to(statistics_dtype(given.dtype))
        return _tile_of(wide / self.temperature if self.temperature != 1 else wide.clone(), part)

    def sums(self) -> LogitSums:
        """Sums of no tile yet."""
        return LogitSums(self)

    def size(self) -> Tensor:
        """[positions]: each one's largest logit; others may be -inf."""
        largest = self.logits.detach().amax(1).float()
        return largest if self.rows is None else largest[self.rows]


class LogitSums:
    """d loss / d logits, in their own shape and dtype."""

    def __init__(self, of: LogitDistributions) -> None:
        self._of = of
        self._sum = torch.zeros_like(of.logits) if of.logits.requires_grad else None

    @torch.no_grad()
    def add(self, tile: WholeTile, gradient: Tensor) -> None:
        """Add those of a tile; `gradient` [t, V] is overwritten."""
        if self._sum is not None:
            wide = tile.logit_gradient(gradient, Transform(None, 1 / self._of.temperature))
            self._sum[self._of.at(tile.part)] = wide.to(self._sum.dtype)

    def finished(self) -> tuple[Tensor | None, ...]:
        """The gradient of the logits."""
        return (self._sum,)


def _columns(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice | None, Tensor]]:
    """A weight in `dtype`: as it is, or some of its rows at a time where it has to be widened."""
    weight = weight.detach()
    if weight.dtype == dtype:
        yield None, weight
        return
    for part in slices(len(weight), WIDENED_COLUMNS):
        yield part, weight[part].to(dtype)
