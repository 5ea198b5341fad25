"""`Seqs`: how packed tokens lie in datums, handed to every loss that has a parameter `seqs`."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import LossContractError, ShapeError
from .groups import DatumGroups


class Seqs:
    """How packed tokens lie in datums. Tensors are [T] over tokens (or [T, K]), [N] over datums.

    In a loss per token, `sum` is unweighted, since the weights multiply the values that the loss returns. In a loss per
    datum, pair, group or batch, `sum` itself weighs the tokens, Σ_t w_t x_t, and `mean` divides that by Σ_t w_t.

    values: how many values the loss returns, where its data say so, such as flags of datums that have none; else None.

    Sums and means are computed in `dtype` at least, that of the model's outputs: booleans count as 0 and 1. Values of
    another length than these datums have raise ShapeError.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray | Tensor,
        *,
        weights: Tensor | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        groups: DatumGroups | None = None,
    ) -> None:
        place = device if device is not None or isinstance(lengths, Tensor) else "cpu"
        on_host = torch.as_tensor(lengths, dtype=torch.int64, device="cpu")
        self._sizes: list[int] = on_host.numpy().tolist()
        self.lengths = torch.as_tensor(lengths, dtype=torch.int64, device=place)
        numbers = torch.arange(len(self._sizes), device=self.lengths.device)
        # told its size, it has no need to read the lengths from a device
        self.index = torch.repeat_interleave(numbers, self.lengths, output_size=int(np.sum(self._sizes)))
        self.dtype = dtype
        self.values: int | None = None
        self._weights, self._groups = weights, groups

    @property
    def groups(self) -> DatumGroups:
        """Which datums belong together by the key `group`. Raises LossContractError in a loss that does not couple groups."""
        if self._groups is None:
            raise LossContractError('seqs.groups is for losses that are registered with per="group" or couples="group"')
        return self._groups.placed(self._groups.cells, self.dtype)

    @property
    def count(self) -> int:
        """Number of datums."""
        return len(self.lengths)

    def plain_sum(self, values: Tensor) -> Tensor:
        """[T] to [N]: unweighted sums over each datum's tokens."""
        values = self._summable(values)
        index = self.index.to(values.device)  # data is packed on the CPU, values are where the model is
        return values.new_zeros((self.count, *values.shape[1:])).index_add(0, index, values)

    def sum(self, values: Tensor) -> Tensor:
        """[T] to [N]: sums over each datum's tokens (weighted in losses per datum, pair, group or batch)."""
        if self._weights is None:
            return self.plain_sum(values)
        values = self._summable(values)
        weights = self._weights.to(values)
        if weights.ndim > values.ndim:
            raise ShapeError(
                f"values of shape {list(values.shape)} cannot be weighed by weights of shape {list(weights.shape)}: "
                "return one value for each of the K targets of a position"
            )
        return self.plain_sum(values * (weights if weights.ndim == values.ndim else weights.unsqueeze(-1)))

    def mean(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """[T] to [N]: means over each datum's tokens, or over those where `mask` is true (0 where there are none)."""
        chosen = values if mask is None else torch.where(mask.bool(), values, torch.zeros_like(values))
        total = self.sum(torch.ones_like(values) if mask is None else torch.ones_like(values) * mask.bool())
        return self.sum(chosen) / torch.where(total == 0, torch.ones_like(total), total)

    def last(self, values: Tensor) -> Tensor:
        """[T] to [N]: each datum's value at its last token."""
        self._check(values, len(self.index), "token")
        if 0 in self._sizes:  # no call packs such a datum
            raise ShapeError(f"datum {self._sizes.index(0)} has no token, so none is its last")
        return values[self.lengths.cumsum(0) - 1]

    def broadcast(self, values: Tensor) -> Tensor:
        """[N] to [T]: each datum's value at each of its tokens."""
        self._check(values, self.count, "datum")
        return values[self.index]

    def split(self, values: Tensor) -> list[Tensor]:
        """[T] to N tensors, one per datum."""
        self._check(values, len(self.index), "token")
        return list(torch.split(values, self._sizes))

    def pairs(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """[N] to ([N/2], [N/2]): datums 2i and 2i+1, chosen and rejected."""
        if len(values) != self.count or self.count % 2:
            raise ShapeError(
                f"pairs need one value for each of an even number of datums, got {len(values)} of {self.count}"
            )
        return values[0::2], values[1::2]

    def chosen(self, mask: Tensor) -> Tensor:
        """[V] places in a flat mask that are true, in order, one for each value; nothing is read where the host has counted `values`."""
        count = self.values if self.values is not None else int(mask.sum())
        return (~mask).byte().argsort(stable=True)[:count]

    def to(self, like: Tensor) -> Seqs:
        """The same on another tensor's device, computing in its dtype at least."""
        if like.device == self.lengths.device and like.dtype == self.dtype:
            return self
        weights = None if self._weights is None else self._weights.to(like.device)
        groups = None if self._groups is None else self._groups.cells.to(like.device)
        moved = self.placed(self.lengths.to(like.device), self.index.to(like.device), weights, groups)
        moved.dtype = like.dtype
        return moved

    def placed(self, lengths: Tensor, index: Tensor, weights: Tensor | None, groups: Tensor | None = None) -> Seqs:
        """The same with its tensors elsewhere. groups: the cells of its groups."""
        other = copy.copy(self)
        other.lengths, other.index = lengths, index
        other._weights = None if self._weights is None else weights
        other._groups = None if self._groups is None or groups is None else self._groups.placed(groups)
        return other

    def _summable(self, values: Tensor) -> Tensor:
        """Values of tokens in `dtype` at least: a sum of booleans in their own type is another boolean."""
        self._check(values, len(self.index), "token")
        return values.to(torch.promote_types(values.dtype, self.dtype))

    @staticmethod
    def _check(values: Tensor, count: int, one: str) -> None:
        if values.ndim == 0 or len(values) != count:
            raise ShapeError(
                f"seqs reads one value per {one}, of which there are {count}, not a tensor of {list(values.shape)}"
            )
