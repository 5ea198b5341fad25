"""A call's data, checked and packed once: what a loss then says about all of it, or about some of its datums."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...datums.types import Datum
from ..batch.outputs import Outputs, as_outputs
from ..batch.pack import positions_of, width_of
from ..batch.packed import Packed, blocks
from ..reductions import Count
from ..stats import Stat

if TYPE_CHECKING:
    from .loss import Loss


class BoundLoss(ABC):
    """What `loss.prepare(data)` gives.

    count: the denominator of these datums. outputs: the model outputs that the loss reads. active: [positions of all
    datums] bool, where it reads them. is_linear: whether d loss / d logprobs is the same whatever the logprobs.
    """

    def __init__(
        self, datums: Sequence[Datum], count: Count, outputs: tuple[str, ...], active: Tensor, *, is_linear: bool
    ) -> None:
        self.datums = datums
        self.count = count
        self.outputs = outputs
        self.active = active
        self.is_linear = is_linear

    @cached_property
    def lengths(self) -> np.ndarray:
        """[N] int64: how many positions each datum has."""
        return np.array([positions_of(datum) for datum in self.datums], dtype=np.int64)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum(self.lengths) - self.lengths

    @abstractmethod
    def terms(self, outputs: Any, order: Sequence[int] | None = None) -> tuple[Tensor, dict[str, Stat]]:
        """The undivided total, and metrics that merge, of all datums, or of those in `order`.

        outputs: of these datums, in that order; as `Loss.terms` takes them.
        """

    def positions(self, order: Sequence[int]) -> np.ndarray:
        """Where, among the positions of all datums, those of the datums in `order` lie."""
        chosen = np.asarray(order, dtype=np.int64)
        return blocks(self._starts[chosen], self.lengths[chosen])

    def chosen(self, order: Sequence[int] | None) -> Sequence[Datum]:
        """The datums in `order`; all of them where there is none."""
        return self.datums if order is None else [self.datums[i] for i in order]

    def given(self, outputs: Any, order: Sequence[int] | None) -> Outputs:
        """`outputs` packed, and named by the numbers that the datums have in this call."""
        packed = outputs if isinstance(outputs, Outputs) else as_outputs(outputs, self.chosen(order), self.outputs[0])
        return packed if order is None or packed.numbers is not None else replace(packed, numbers=order)

    def logprob_gradient(
        self,
        order: Sequence[int] | None = None,
        count: Count | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor | None:
        """d (total / count) / d logprobs of a loss that declared itself linear, before any forward; None of any other.

        [S] or [S, K], over the active positions of the datums in `order`. count: the whole call's; this data's own by
        default. It comes from the same computation as the gradient at the model's logprobs, so that the two are equal bit
        for bit: in a linear loss they play no part.
        """
        if not self.is_linear:
            return None
        active = self.active if order is None else self.active[torch.from_numpy(self.positions(order))]
        width = width_of(self.chosen(order))
        shape = (int(active.sum()),) if width is None else (int(active.sum()), width)
        with torch.enable_grad():
            logprobs = torch.zeros(shape, dtype=dtype, device=device, requires_grad=True)
            total, _ = self.terms(Outputs(logprobs=logprobs, active=active), order)
            (gradient,) = torch.autograd.grad(total / (self.count if count is None else count), logprobs)
        return gradient


class BoundSingle(BoundLoss):
    """Of one loss whose function is called on packed tensors."""

    def __init__(self, loss: Loss, datums: Sequence[Datum], packed: Packed, count: Count) -> None:
        super().__init__(datums, count, loss.outputs, packed.active, is_linear=loss.spec.linear)
        self._loss, self._packed = loss, packed

    def terms(self, outputs: Any, order: Sequence[int] | None = None) -> tuple[Tensor, dict[str, Stat]]:
        """As `Loss.terms`, of what is packed already."""
        return self._loss.packed_terms(self._part(order), self.given(outputs, order))

    def _part(self, order: Sequence[int] | None) -> Packed:
        if order is None or np.array_equal(order, np.arange(len(self.datums))):
            return self._packed
        if not self._packed.is_even:  # these datums alone may have fewer columns than all together
            return self._loss.pack(self.chosen(order))
        return self._packed.select(order)


class BoundBatchStyle(BoundLoss):
    """Of a function with the hosted APIs' signature, which sees every datum and every position."""

    def __init__(self, loss: Loss, datums: Sequence[Datum]) -> None:
        everywhere = torch.ones(sum(map(positions_of, datums)), dtype=torch.bool)
        super().__init__(datums, Count((None,)), loss.outputs, everywhere, is_linear=False)
        self._loss = loss

    def terms(self, outputs: Any, order: Sequence[int] | None = None) -> tuple[Tensor, dict[str, Stat]]:
        """What the function says about these datums."""
        return self._loss.terms(self.chosen(order), outputs)


class BoundMixture(BoundLoss):
    """Of a weighted sum of losses: one total a part."""

    def __init__(
        self, datums: Sequence[Datum], outputs: tuple[str, ...], parts: Sequence[tuple[float, str, BoundLoss]]
    ) -> None:
        count = Count(tuple(value for _, _, part in parts for value in part.count.values))
        active = active_in_any(part.active for _, _, part in parts if part.outputs != ("embeddings",))
        super().__init__(datums, count, outputs, active, is_linear=all(part.is_linear for _, _, part in parts))
        self._parts = parts

    def terms(self, outputs: Any, order: Sequence[int] | None = None) -> tuple[Tensor, dict[str, Stat]]:
        """One total a part [parts], factors applied, and the parts' metrics."""
        given = self.given(outputs, order)
        return mixed_terms((factor, name, part.terms(given, order)) for factor, name, part in self._parts)


def active_in_any(masks: Iterable[Tensor]) -> Tensor:
    """[positions] bool: where any of the masks is true."""
    each = list(masks)
    return torch.stack(each).any(0) if each else torch.zeros(0, dtype=torch.bool)


def mixed_terms(parts: Iterable[tuple[float, str, tuple[Tensor, dict[str, Stat]]]]) -> tuple[Tensor, dict[str, Stat]]:
    """The terms of a mixture from (factor, name, terms) of its parts."""
    totals: list[Tensor] = []
    found: dict[str, Stat] = {}
    for factor, name, (total, part_stats) in parts:
        totals.append(factor * total)
        found.update({f"{name}/{key}": stat for key, stat in part_stats.items()})
    return (torch.stack(totals) if len(totals) > 1 else totals[0]), found
