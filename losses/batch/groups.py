"""`DatumGroups`: which datums belong together by the key `group`, such as one query's candidates; and which must be seen together.

Members of a group may stand anywhere in a call. Groups are numbered by their first appearance.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import ShapeError
from ...datums.types import Datum
from ..spec.spec import GROUP_KEY, LossSpec


class DatumGroups:
    """G groups of N datums. Values are [N], one per datum, or [G], one per group, or lists [G, M], M the largest group's size, 1 at least.

    index [N]  each datum's group. sizes: datums of each group. A list holds a group's datums in their order in the call.

    Sums, means and maxima are computed in `dtype` at least, that of the model's outputs.
    """

    def __init__(self, ids: Sequence[int] | np.ndarray | Tensor) -> None:
        """ids: [N] integers, the same for datums of one group."""
        self.dtype = torch.float32
        numbers = np.asarray(ids.cpu() if isinstance(ids, Tensor) else ids).reshape(-1)
        _, first, inverse, sizes = np.unique(numbers, return_index=True, return_inverse=True, return_counts=True)
        by_appearance = np.argsort(first)
        place = np.argsort(by_appearance)[inverse]
        sizes = sizes[by_appearance]
        self.sizes: list[int] = sizes.tolist()
        self.width: int = max(self.sizes, default=1)
        in_order = np.argsort(place, kind="stable")
        column = np.empty(len(numbers), dtype=np.int64)
        column[in_order] = np.arange(len(numbers)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        #: [N], where each datum lies in lists that are read row by row
        self.cells = torch.from_numpy(place * self.width + column)

    @property
    def count(self) -> int:
        """Number of groups."""
        return len(self.sizes)

    @property
    def index(self) -> Tensor:
        """[N]: each datum's group, in order of first appearance."""
        return self.cells // self.width

    @property
    def mask(self) -> Tensor:
        """[G, M] bool: where lists hold a datum."""
        return self.lists(torch.ones_like(self.cells, dtype=torch.bool), False)

    def lists(self, values: Tensor, fill: float) -> Tensor:
        """[N] to [G, M]: each group's values in one row, and `fill` behind them."""
        self._check(values, len(self.cells), "datum")
        flat = torch.full((self.count * self.width,), fill, dtype=values.dtype, device=values.device)
        return flat.index_copy(0, self.cells.to(values.device), values).reshape(self.count, self.width)

    def flat(self, lists: Tensor) -> Tensor:
        """[G, M] to [N]: what lists hold of each datum."""
        return lists.reshape(-1)[self.cells.to(lists.device)]

    def sum(self, values: Tensor) -> Tensor:
        """[N] to [G]: sums over each group."""
        self._check(values, len(self.cells), "datum")
        values = self._raised(values)
        return values.new_zeros(self.count).index_add(0, self.index.to(values.device), values)

    def mean(self, values: Tensor) -> Tensor:
        """[N] to [G]: means over each group."""
        return self.sum(values) / self.sum(torch.ones_like(values))

    def max(self, values: Tensor) -> Tensor:
        """[N] to [G]: the largest value of each group."""
        return self.lists(self._raised(values), -torch.inf).amax(1)

    def logsumexp(self, values: Tensor) -> Tensor:
        """[N] to [G]: log Σ exp over each group."""
        return self.lists(self._raised(values), -torch.inf).logsumexp(1)

    def log_softmax(self, values: Tensor) -> Tensor:
        """[N] to [N]: the log of each datum's share, exp(value) / Σ over its group."""
        return values - self.broadcast(self.logsumexp(values))

    def broadcast(self, values: Tensor) -> Tensor:
        """[G] to [N]: each group's value at each of its datums."""
        self._check(values, self.count, "group")
        return values[self.index.to(values.device)]

    def placed(self, cells: Tensor, dtype: torch.dtype | None = None) -> DatumGroups:
        """The same with its `cells` on another device, computing in `dtype` at least."""
        other = copy.copy(self)
        other.cells, other.dtype = cells, self.dtype if dtype is None else dtype
        return other

    def _raised(self, values: Tensor) -> Tensor:
        """Values in `dtype` at least: integers have no -inf and no mean."""
        return values.to(torch.promote_types(values.dtype, self.dtype))

    @staticmethod
    def _check(values: Tensor, count: int, one: str) -> None:
        if values.ndim != 1 or len(values) != count:
            raise ShapeError(
                f"seqs.groups reads one value per {one}, of which there are {count}, not a tensor of {list(values.shape)}"
            )


def units_of(datums: Sequence[Datum], specs: Sequence[LossSpec]) -> list[list[int]] | None:
    """Indices of the datums that losses which couple groups must see together; None where none of them does."""
    if not any(spec.couples == "group" for spec in specs):
        return None
    return joined(len(datums), group_ids(datums), pairs=any(spec.per == "pair" for spec in specs))


def group_ids(datums: Sequence[Datum]) -> list[float]:
    """The key `group` of each datum; every datum carries it, though it is checked only where a weight is not 0."""
    return [datum.loss_fn_inputs[GROUP_KEY].to_numpy().reshape(-1).tolist()[0] for datum in datums]


def joined(count: int, ids: Sequence[float], *, pairs: bool) -> list[list[int]]:
    """Indices of `count` datums that must be seen together, each unit in the call's order, by its first datum.

    ids: of the datums' groups. pairs: datums 2i and 2i+1 too, so that a pair may join two groups.
    """
    unit_of = {number: unit for unit, number in enumerate(dict.fromkeys(ids))}
    units = np.array([unit_of[number] for number in ids], dtype=np.int64)
    for i in range(0, count - 1 if pairs else 0, 2):
        units[units == units[i + 1]] = units[i]
    members: dict[int, list[int]] = {}
    for i, unit in enumerate(units.tolist()):
        members.setdefault(unit, []).append(i)
    return list(members.values())
