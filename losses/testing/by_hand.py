"""`Seqs` and `DatumGroups` by the plainest code there is, for the law that holds losses to them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..batch.groups import DatumGroups
from ..batch.seqs import Seqs


class SeqsByHand(Seqs):
    """What `Seqs` says it gives, by the plainest code there is."""

    @classmethod
    def of(cls, seqs: Seqs) -> SeqsByHand:
        """The same datums."""
        return cls(seqs.lengths, weights=seqs._weights, groups=seqs._groups and GroupsByHand(seqs._groups.index))

    def plain_sum(self, values: Tensor) -> Tensor:
        """[T] to [N]: unweighted sums over each datum's tokens."""
        numbers = values if values.dtype == torch.float32 else values.double()
        parts = numbers.split(self.lengths.tolist())
        return torch.stack([part.sum(0) for part in parts]) if parts and self.count else numbers[:0]

    def sum(self, values: Tensor) -> Tensor:
        """[T] to [N]: sums over each datum's tokens (weighted in losses per datum, pair or batch)."""
        if self._weights is None:
            return self.plain_sum(values)
        numbers = values if values.dtype == torch.float32 else values.double()
        weights = self._weights.to(numbers)
        return self.plain_sum(numbers * weights.reshape(*weights.shape, *[1] * (numbers.ndim - weights.ndim)))

    def mean(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """[T] to [N]: means over each datum's tokens, or over those where `mask` is true (0 where there are none)."""
        numbers = values if values.dtype == torch.float32 else values.double()
        chosen = torch.ones_like(numbers) if mask is None else mask.to(numbers)
        total = self.sum(chosen)
        kept = numbers if mask is None else torch.where(mask.bool(), numbers, 0.0)
        return self.sum(kept) / torch.where(total == 0, 1.0, total)


class GroupsByHand(DatumGroups):
    """What `DatumGroups` says it gives, one group at a time."""

    @property
    def members(self) -> list[list[int]]:
        """The datums of each group."""
        index = self.index.tolist()
        return [[i for i, group in enumerate(index) if group == g] for g in range(self.count)]

    def _each(self, values: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """`reduce` of each group's values, [G, ...]."""
        return torch.stack([reduce(values[own]) for own in self.members]) if self.count else values[:0]

    def lists(self, values: Tensor, fill: float) -> Tensor:
        """[N] to [G, M]: each group's values in one row, and `fill` behind them."""
        if not self.count:
            return values.reshape(0, 1)
        return self._each(values, lambda own: torch.cat([own, own.new_full((self.width - len(own),), fill)]))

    def sum(self, values: Tensor) -> Tensor:
        """[N] to [G]: sums over each group."""
        return self._each(self._raised(values), lambda own: own.sum())

    def mean(self, values: Tensor) -> Tensor:
        """[N] to [G]: means over each group."""
        return self._each(self._raised(values), lambda own: own.mean())

    def max(self, values: Tensor) -> Tensor:
        """[N] to [G]: the largest value of each group."""
        return self._each(self._raised(values), lambda own: own.amax())

    def logsumexp(self, values: Tensor) -> Tensor:
        """[N] to [G]: log Σ exp over each group."""
        return self._each(self._raised(values), lambda own: own.logsumexp(0))
