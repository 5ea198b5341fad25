"""Packed tensors: all datums' tokens in one row, masked positions left out, and how they lie in datums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import ShapeError
from ..spec.spec import LossSpec, Per


class Seqs:
    """How packed tokens lie in datums. Tensors are [T] over tokens (or [T, K]), [N] over datums.

    In a loss per token, `sum` is plain, since weights multiply what the loss returns. In a loss per datum, pair or batch
    nothing is left to multiply afterwards, so `sum` weighs tokens: Σ_t w_t x_t; and `mean` is that over Σ_t w_t.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray | Tensor,
        *,
        weights: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.lengths = torch.as_tensor(lengths, dtype=torch.int64, device=device)
        self.index = torch.repeat_interleave(torch.arange(len(self.lengths), device=device), self.lengths)
        self._weights = weights

    @property
    def count(self) -> int:
        """Number of datums."""
        return len(self.lengths)

    def plain_sum(self, values: Tensor) -> Tensor:
        """[T] to [N]: unweighted sums over each datum's tokens."""
        index = self.index.to(values.device)  # data is packed on the CPU, values are where the model is
        return values.new_zeros((self.count, *values.shape[1:])).index_add(0, index, values)

    def sum(self, values: Tensor) -> Tensor:
        """[T] to [N]: sums over each datum's tokens (weighted in losses per datum, pair or batch)."""
        if self._weights is None:
            return self.plain_sum(values)
        weights = self._weights.to(values)
        if weights.ndim > values.ndim:
            raise ShapeError(
                f"values of shape {list(values.shape)} cannot be weighed by weights of shape {list(weights.shape)}: "
                "return one value for each of the K targets of a position"
            )
        return self.plain_sum(values * (weights if weights.ndim == values.ndim else weights.unsqueeze(-1)))

    def mean(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """[T] to [N]: means over each datum's tokens, or over those where `mask` is true (0 where there are none)."""
        counted = torch.ones_like(values) if mask is None else mask.to(values)
        kept = values if mask is None else torch.where(mask.bool(), values, torch.zeros_like(values))
        total = self.sum(counted)
        return self.sum(kept) / torch.where(total == 0, torch.ones_like(total), total)

    def last(self, values: Tensor) -> Tensor:
        """[T] to [N]: each datum's value at its last token."""
        return values[self.lengths.cumsum(0) - 1]

    def broadcast(self, values: Tensor) -> Tensor:
        """[N] to [T]: each datum's value at each of its tokens."""
        return values[self.index]

    def split(self, values: Tensor) -> list[Tensor]:
        """[T] to N tensors, one a datum."""
        return list(torch.split(values, self.lengths.tolist()))

    def pairs(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """[N] to ([N/2], [N/2]): datums 2i and 2i+1, chosen and rejected."""
        if len(values) != self.count or self.count % 2:
            raise ShapeError(
                f"pairs need one value for each of an even number of datums, got {len(values)} of {self.count}"
            )
        return values[0::2], values[1::2]

    def to(self, like: Tensor) -> Seqs:
        """The same on another tensor's device."""
        if like.device == self.lengths.device:
            return self
        weights = None if self._weights is None else self._weights.to(like)
        return Seqs(self.lengths, weights=weights, device=like.device)


@dataclass
class Packed:
    """What one loss reads of some datums, apart from the model's outputs.

    lengths: [N] positions of each datum. tokens: [N] how many of them the loss sees. active: [positions of all datums]
    bool, which those are. weights: [T] or [T, K] over active positions.
    inputs: packed tensors by name (None: absent and optional); one number a position is [T], or [T, K] beside [T, K]
    logprobs, except in a loss that wants weights; `PerDatum` inputs are over the datums that it sees.
    is_even: whatever has columns has as many in every datum.
    """

    spec: LossSpec
    config: object
    lengths: np.ndarray
    tokens: np.ndarray
    active: Tensor
    weights: Tensor
    inputs: dict[str, Tensor | None]
    is_even: bool = True

    @property
    def per(self) -> Per:
        """What one of the loss's values is about."""
        return self.spec.per

    @cached_property
    def kept(self) -> np.ndarray:
        """Indices of the datums that the loss sees."""
        return np.flatnonzero(self.tokens)

    @cached_property
    def seqs(self) -> Seqs:
        """How the packed tokens lie in the datums it sees."""
        is_weighed = self.per != "token" and self.spec.reads_tokens
        return Seqs(self.tokens[self.kept], weights=self.weights if is_weighed else None)

    @cached_property
    def value_count(self) -> int:
        """How many values the loss returns. Raises ShapeError where the datums are not laid out as it needs them."""
        datums = len(self.kept)
        if self.spec.groups is not None:
            values = self.spec.groups(datums, self.config, self.inputs).values
            if values is not None:
                return values
        tokens = int(self.tokens.sum()) if self.spec.reads_tokens else 0
        return {"token": tokens, "datum": datums, "pair": datums // 2, "batch": 1}[self.per]

    @cached_property
    def absent(self) -> Tensor | None:
        """[T, K] bool, in losses over candidates: which of them a position lacks."""
        marked = None if self.spec.candidates is None else self.inputs[self.spec.candidates]
        return None if marked is None else marked == -torch.inf

    @cached_property
    def weight_per_datum(self) -> Tensor:
        """[N] float64: the sum of each kept datum's weights."""
        return self.seqs.plain_sum(row_sums(self.weights.double()))

    @cached_property
    def _starts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where each datum begins among all positions, among active ones, and among the datums that are kept."""
        counts = (self.lengths, self.tokens, (self.tokens > 0).astype(np.int64))
        return tuple(np.cumsum(one) - one for one in counts)  # type: ignore[return-value]

    def select(self, order: Sequence[int] | np.ndarray) -> Packed:
        """Some of the datums in the order given: what packing just those gives, provided that `is_even`."""
        chosen = np.asarray(order, dtype=np.int64)
        first, first_row, place = (starts[chosen] for starts in self._starts)
        lengths, tokens = self.lengths[chosen], self.tokens[chosen]
        positions = torch.from_numpy(blocks(first, lengths))
        rows = torch.from_numpy(blocks(first_row, tokens))
        datums = torch.from_numpy(place[tokens > 0])
        per = {wanted.name: datums if wanted.per == "datum" else rows for wanted in self.spec.inputs}
        inputs = {name: None if value is None else value[per[name]] for name, value in self.inputs.items()}
        return Packed(
            self.spec, self.config, lengths, tokens, self.active[positions], self.weights[rows], inputs, self.is_even
        )


def blocks(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Indices of blocks, one after the other: starts[i], starts[i] + 1, ... of which there are lengths[i]."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)


def row_sums(values: Tensor) -> Tensor:
    """[T] as it is, [T, K] summed over K. Not `reshape(T, -1)`, which fails on nothing."""
    return values if values.ndim == 1 else values.sum(1)


def has_weight(weights: Tensor, like: Tensor) -> Tensor:
    """[T] or [T, 1] bool, to go with `like`: which positions have a weight at all (all but in losses that want weights)."""
    alive = weights != 0 if weights.ndim == 1 else (weights != 0).any(1)
    return alive.to(like.device).reshape(-1, *[1] * (like.ndim - 1))
