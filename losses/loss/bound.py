"""A loss bound to the data of one call, checked and packed once, for every question about all or some of its datums."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import EmptyLossError, LossContractError
from ...datums.types import Datum
from ..batch.checks import check_keys
from ..batch.outputs import Outputs, as_outputs
from ..batch.pack import pack
from ..batch.packed import Packed, blocks
from ..batch.positions import positions_of, width_of
from ..reductions import Count
from ..spec.settings import WEIGHTS_KEY, Settings
from ..spec.spec import LossSpec
from ..spec.under_settings import layers_of, top_k_of
from ..stats import Stat
from .evaluate import check_outputs, evaluate, evaluated_total
from .harmless import harmless_datums
from .hosted import call_batch_style


class BoundLoss(ABC):
    """What `loss.prepare(data)` gives.

    name: the loss's id. outputs: the model outputs that it reads. is_linear: d loss / d logprobs does not depend on logprobs.
    weight_keys: the keys of its weights: a position counts where any of them is not 0. top_k: how many of the likeliest tokens
    it reads; 0 for none. layers: of which layers it reads embeddings.
    """

    def __init__(
        self,
        name: str,
        datums: Sequence[Datum],
        outputs: tuple[str, ...],
        *,
        is_linear: bool,
        weight_keys: tuple[str, ...] = (WEIGHTS_KEY,),
        top_k: int = 0,
        layers: tuple[int, ...] = (),
    ) -> None:
        self.name = name
        self.datums = datums
        self.outputs = outputs
        self.is_linear = is_linear
        self.weight_keys = weight_keys
        self.top_k = top_k
        self.layers = layers

    @cached_property
    @abstractmethod
    def active(self) -> Tensor:
        """[positions of all datums] bool: where the loss reads the model's outputs."""

    @cached_property
    @abstractmethod
    def count(self) -> Count:
        """The denominator of these datums, from data alone."""

    @abstractmethod
    def check(self, *, strict: bool = False, others: Collection[str] = ()) -> None:
        """Raise for anything in the data that the loss could not use.

        strict: also refuse keys that it does not read. others: keys that other parts of a mixture read.
        """

    @abstractmethod
    def terms(self, outputs: Any, order: Sequence[int] | None = None) -> tuple[Tensor, dict[str, Stat]]:
        """The undivided total, and metrics that merge, of all datums, or of those in `order`.

        outputs: of these datums, in that order; as `Loss.terms` takes them.
        """

    def values(self, outputs: Any, order: Sequence[int] | None = None) -> Tensor:
        """What the loss's function returns, neither weighed nor reduced. Raises LossContractError where it is not one."""
        raise LossContractError(f"{self.name} returns no values per token, datum or pair; ask its parts")

    @abstractmethod
    def part(self, order: Sequence[int]) -> BoundLoss:
        """The loss bound to some of these datums; its denominator is their share."""

    def tensors(self, computed: Tensor | None) -> dict[str, Tensor]:
        """What the loss reads of its data, by name, to be moved to the model's device at once: `placed` takes it back.

        computed: [positions of all datums] bool, on the CPU: which of them the model's outputs will hold; None for all.
        """
        return {}

    def placed(self, tensors: Mapping[str, Tensor]) -> BoundLoss:
        """The same loss, its `tensors` on another device."""
        return self

    @abstractmethod
    def check_outputs(self, outputs: Outputs) -> None:
        """Raise, as `terms` does, where a model's output that the loss reads is not finite, or a log-probability above 0.

        For a caller that handed `terms` unchecked outputs, and has their numbers now, on this loss's own device.
        """

    @cached_property
    def lengths(self) -> np.ndarray:
        """[N] int64: how many positions each datum has."""
        return np.array([positions_of(datum) for datum in self.datums], dtype=np.int64)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum(self.lengths) - self.lengths

    def positions(self, order: Sequence[int]) -> np.ndarray:
        """Indices, among the positions of all datums, of those of the datums in `order`."""
        chosen = np.asarray(order, dtype=np.int64)
        return blocks(self._starts[chosen], self.lengths[chosen])

    def chosen(self, order: Sequence[int] | None) -> Sequence[Datum]:
        """The datums in `order`; all of them without one."""
        return self.datums if order is None else [self.datums[i] for i in order]

    def given(self, outputs: Any, order: Sequence[int] | None) -> Outputs:
        """`outputs` packed, with each datum's index in this call, for messages."""
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
        default. The computation is the one that gives the gradient at the model's logprobs, so the two are equal bit for bit:
        in a linear loss the logprobs do not enter it.
        """
        if not self.is_linear:
            return None
        active = self.active if order is None else self.active[torch.from_numpy(self.positions(order))]
        width, rows = width_of(self.chosen(order)), int(active.numpy().sum())
        shape = (rows,) if width is None else (rows, width)
        with torch.enable_grad():
            logprobs = torch.zeros(shape, dtype=dtype, device=device, requires_grad=True)
            total, _ = self.terms(Outputs(logprobs=logprobs, active=active, is_unchecked=True), order)
            (gradient,) = torch.autograd.grad(total / (self.count if count is None else count), logprobs)
        return gradient


class BoundSingle(BoundLoss):
    """One loss whose function is called on packed tensors."""

    def __init__(
        self, spec: LossSpec, settings: Settings, datums: Sequence[Datum], packed: Packed | None = None
    ) -> None:
        keys = (settings.weights or WEIGHTS_KEY,)
        top_k = top_k_of(spec, settings)
        layers = layers_of(spec, settings)
        super().__init__(
            spec.name, datums, spec.outputs, is_linear=spec.linear, weight_keys=keys, top_k=top_k, layers=layers
        )
        self._spec, self._settings = spec, settings
        self._packed = self._pack(datums) if packed is None else packed

    @cached_property
    def active(self) -> Tensor:
        """[positions of all datums] bool: where the loss reads the model's outputs."""
        return self._packed.active

    @cached_property
    def count(self) -> Count:
        """The denominator of these datums."""
        return self._packed.count(self._settings.reduction, self._settings.norm_length)

    def check(self, *, strict: bool = False, others: Collection[str] = ()) -> None:
        """Refuse unknown keys, no datums, no weight, and nothing to divide by."""
        if not self.datums:
            raise EmptyLossError(f"{self.name}: there are no datums")
        check_keys(self.datums, self._spec, self._settings, strict=strict, others=others)
        if not len(self._packed.active_datums):
            raise EmptyLossError(
                f"{self.name}: every weight{self._under_key} of all {len(self.datums)} datums is 0, so there is nothing to train on. "
                "Was the response truncated away, or the mask made for another chat template?"
            )
        if self.count.is_zero:
            raise EmptyLossError(f"{self.name}: reduction {self._settings.reduction!r} has nothing to divide by")

    @property
    def _under_key(self) -> str:
        key = self._settings.weights
        return "" if key in (None, WEIGHTS_KEY) else f" under {key!r}"

    def terms(self, outputs: Any, order: Sequence[int] | None = None) -> tuple[Tensor, dict[str, Stat]]:
        """The total under the loss's reduction, and its metrics."""
        packed = self._part(order)
        given, settings = self.given(outputs, order), self._settings
        return evaluated_total(self._spec, settings.function, packed, given, settings.reduction)

    def values(self, outputs: Any, order: Sequence[int] | None = None) -> Tensor:
        """What the loss's function returns."""
        return evaluate(self._spec, self._settings.function, self._part(order), self.given(outputs, order))[0]

    def part(self, order: Sequence[int]) -> BoundSingle:
        """The loss bound to some of these datums."""
        return BoundSingle(self._spec, self._settings, self.chosen(order), self._part(order))

    def tensors(self, computed: Tensor | None) -> dict[str, Tensor]:
        """Weights, inputs, and how tokens lie in datums and outputs."""
        return self._packed.tensors(computed)

    def placed(self, tensors: Mapping[str, Tensor]) -> BoundSingle:
        """The same loss, its `tensors` on another device."""
        return BoundSingle(self._spec, self._settings, self.datums, self._packed.placed(tensors))

    def check_outputs(self, outputs: Outputs) -> None:
        """Of the outputs that its function reads."""
        check_outputs(self._spec, self._packed, outputs)

    def _part(self, order: Sequence[int] | None) -> Packed:
        if order is None or np.array_equal(order, np.arange(len(self.datums))):
            return self._packed
        if not self._packed.is_even:  # these datums alone may have fewer columns than all together
            return replace(self._pack(self.chosen(order)), prompts=self._packed.select(order).prompts)
        return self._packed.select(order)

    def _pack(self, datums: Sequence[Datum]) -> Packed:
        return pack(datums, self._spec, self._settings)


class BoundBatchStyle(BoundLoss):
    """A function with the hosted APIs' signature, which sees every datum and every position."""

    def __init__(self, spec: LossSpec, settings: Settings, datums: Sequence[Datum]) -> None:
        super().__init__(spec.name, datums, spec.outputs, is_linear=False)
        self._spec, self._settings = spec, settings

    @cached_property
    def active(self) -> Tensor:
        """[positions of all datums] bool: all true."""
        return torch.ones(int(self.lengths.sum()), dtype=torch.bool)

    @cached_property
    def count(self) -> Count:
        """The function reduces its values itself."""
        return Count((None,))

    def check(self, *, strict: bool = False, others: Collection[str] = ()) -> None:
        """Raise for an empty list, and for NaN where a weight is not 0. The keys that the function reads are unknown."""
        if not self.datums:
            raise EmptyLossError(f"{self.name}: there are no datums")
        _ = self._harmless

    def terms(self, outputs: Any, order: Sequence[int] | None = None) -> tuple[Tensor, dict[str, Stat]]:
        """What the function says about these datums."""
        numbers = range(len(self.datums)) if order is None else order
        datums = [self._harmless[i] for i in numbers]
        given = getattr(outputs, "numbers", None)
        return call_batch_style(
            self._spec, self._settings.function, datums, outputs, numbers if given is None else given
        )

    def part(self, order: Sequence[int]) -> BoundBatchStyle:
        """The function with some of these datums."""
        part = BoundBatchStyle(self._spec, self._settings, self.chosen(order))
        part._harmless = [self._harmless[i] for i in order]
        return part

    def check_outputs(self, outputs: Outputs) -> None:
        """Does nothing: the outputs of such a function are checked on the host, where it gets them."""

    @cached_property
    def _harmless(self) -> list[Datum]:
        return harmless_datums(self.datums, self.name)
