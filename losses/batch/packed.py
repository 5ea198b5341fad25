"""Packed tensors: all datums' tokens in one row, without the masked positions, and how they lie in datums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import WeightsError
from ..reductions import Count
from ..spec.settings import WEIGHTS_KEY
from ..spec.spec import GROUP_KEY, LossSpec, Per
from .groups import DatumGroups
from .positions import active_targets, has_columns, weighted
from .prompts import Prompts, joined_mean
from .seqs import Seqs


@dataclass
class Packed:
    """What one loss reads of some datums, apart from the model's outputs.

    lengths: [N] positions of each datum. tokens: [N] how many of them are active. active: [positions of all datums] bool,
    which those are. weights: [T] or [T, K] over active positions.
    inputs: packed tensors by name, None for an optional one that is absent. One number per position is [T], or [T, K] beside
    [T, K] logprobs, except in a loss that wants weights. `PerDatum` inputs are over the active datums.
    is_even: every tensor with columns has the same number of them in all datums.
    rows: once `placed`, where the active positions, and the active datums, lie among those that the outputs hold.
    prompts: under reduction "prompt-mean", the weights of the active datums' groups in the whole call.
    """

    spec: LossSpec
    config: object
    lengths: np.ndarray
    tokens: np.ndarray
    active: Tensor
    weights: Tensor
    inputs: dict[str, Tensor | None]
    is_even: bool = True
    rows: Mapping[str, Tensor | None] | None = None
    prompts: Prompts | None = None

    @property
    def per(self) -> Per:
        """What one of the loss's values is about: a token, datum, pair, group or batch."""
        return self.spec.per

    @cached_property
    def active_datums(self) -> np.ndarray:
        """Indices of the datums with an active position."""
        return np.flatnonzero(self.tokens)

    @cached_property
    def seqs(self) -> Seqs:
        """How the packed tokens lie in the active datums."""
        is_weighed = self.per != "token" and self.spec.reads_tokens
        seqs = Seqs(self.tokens[self.active_datums], weights=self.weights if is_weighed else None, groups=self.groups)
        seqs.values = None if self.spec.groups is None else self.value_count
        return seqs

    @cached_property
    def groups(self) -> DatumGroups | None:
        """Which active datums belong together, in a loss that couples groups."""
        ids = self.inputs.get(GROUP_KEY) if self.spec.couples == "group" else None
        return None if ids is None else DatumGroups(ids)

    @cached_property
    def value_count(self) -> int:
        """How many values a loss per datum, pair or group, or one that declares `groups`, returns. Raises ShapeError where the datums are not laid out as it needs them."""
        datums = len(self.active_datums)
        if self.spec.groups is not None:
            values = self.spec.groups(datums, self.config, self.inputs).values
            if values is not None:
                return values
        if self.per == "group" and self.groups is not None:
            return self.groups.count
        return datums // 2 if self.per == "pair" else datums

    @cached_property
    def targets(self) -> Tensor | None:
        """[T, K] bool: which of the K targets of each position count. None if there is one target per row."""
        return active_targets(self.weights, self.spec) if has_columns(self.weights, self.spec) else None

    @cached_property
    def absent(self) -> Tensor | None:
        """[T, K] bool, in a loss over candidates: which of them a position lacks."""
        marked = None if self.spec.candidates is None else self.inputs[self.spec.candidates]
        return None if marked is None else marked == -torch.inf

    @cached_property
    def weight_per_datum(self) -> Tensor:
        """[N] float64: the sum of each active datum's weights."""
        return self.seqs.plain_sum(row_sums(self.weights.double()))

    @cached_property
    def _starts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where each datum begins among all positions, among active positions, and among active datums."""
        counts = (self.lengths, self.tokens, (self.tokens > 0).astype(np.int64))
        return tuple(np.cumsum(one) - one for one in counts)  # type: ignore[return-value]

    def total(self, values: Tensor, reduction: str) -> Tensor:
        """The 0-d total of the loss's values under `reduction` (the table in reductions.py); not divided."""
        if self.per != "token":
            return values.sum()
        if not self.spec.wants_weights:  # such a loss has its weights in its values already
            weights = self.weights.to(values)
            values = weighted(values, weights, active_targets(weights, self.spec))
        if reduction not in ("seq-mean-token-mean", "prompt-mean"):
            return values.sum()
        sums = self.seqs.plain_sum(row_sums(values))  # unweighted: the weights are in `values` by now
        return joined_mean(sums, self.weight_per_datum if self.prompts is None else self.prompts.weights)

    def count(self, reduction: str, norm_length: int | None) -> Count:
        """The denominator that belongs to `total`, from data alone.

        norm_length: None unless `reduction` divides by it. Raises WeightsError for negative weights in the denominator.
        """
        if reduction == "sum":
            return Count((None,))
        self._check_not_negative(reduction)
        if reduction == "token-mean":
            return Count((float(self.weight_per_datum.sum()),))
        if self.prompts is not None:
            return Count((float(self.prompts.count),))
        if reduction in ("seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"):
            datums = float((self.weight_per_datum != 0).sum())
            return Count((datums * (norm_length or 1),))
        return Count((float(self.value_count),))

    def _check_not_negative(self, reduction: str) -> None:
        if self.spec.reads_tokens and bool((self.weights < 0).any()):
            rows = (self.weights < 0).reshape(len(self.weights), -1).any(1)
            datum = self.active_datums[int(self.seqs.index[rows][0])]
            raise WeightsError(
                f"{self.spec.name}: datum {datum} has negative {getattr(self.config, 'weights', WEIGHTS_KEY)}, which reduction {reduction!r} cannot divide by. "
                "Use reduction 'sum', which takes any real weights"
            )

    def places(self, computed: Tensor | None) -> dict[str, Tensor | None]:
        """Where the active "positions", and the active "datums", lie among those that outputs hold; None for all of them.

        computed: [positions of all datums] bool, on the CPU, which positions the outputs hold; None for all.
        """
        positions = self.active.numpy()
        if computed is not None and self.spec.reads_tokens:
            positions = positions[computed.numpy()]
        masks = {"positions": positions, "datums": self.tokens > 0}
        return {of: None if mask.all() else torch.from_numpy(np.flatnonzero(mask)) for of, mask in masks.items()}

    def tensors(self, computed: Tensor | None) -> dict[str, Tensor]:
        """What the loss reads where the model is, by name: `placed` takes it back from there."""
        given = {f"input {name}": value for name, value in self.inputs.items()}
        given |= {f"places of {of}": value for of, value in self.places(computed).items()}
        own = {"weights": self.weights, "lengths": self.seqs.lengths, "index": self.seqs.index}
        own |= {} if self.groups is None else {"cells of groups": self.groups.cells}
        own |= {} if self.prompts is None else {"weights of prompts": self.prompts.weights}
        return own | {name: value for name, value in given.items() if value is not None}

    def placed(self, tensors: Mapping[str, Tensor]) -> Packed:
        """The same, with its `tensors` on another device."""
        inputs = {name: tensors.get(f"input {name}") for name in self.inputs}
        rows = {of: tensors.get(f"places of {of}") for of in ("positions", "datums")}
        prompts = None if self.prompts is None else self.prompts.placed(tensors["weights of prompts"])
        other = replace(self, weights=tensors["weights"], inputs=inputs, rows=rows, prompts=prompts)
        cells = tensors.get("cells of groups")
        other.seqs = self.seqs.placed(tensors["lengths"], tensors["index"], other.weights, cells)
        other.groups = None if self.groups is None or cells is None else self.groups.placed(cells)
        other.value_count = self.value_count  # which may take reading the inputs
        return other

    def select(self, order: Sequence[int] | np.ndarray) -> Packed:
        """Select datums, in the given order: the same as packing only those, provided that `is_even`."""
        chosen = np.asarray(order, dtype=np.int64)
        first, first_row, place = (starts[chosen] for starts in self._starts)
        lengths, tokens = self.lengths[chosen], self.tokens[chosen]
        positions = torch.from_numpy(blocks(first, lengths))
        rows = torch.from_numpy(blocks(first_row, tokens))
        datums = torch.from_numpy(place[tokens > 0])
        prompts = None if self.prompts is None else self.prompts.select(datums)
        per = {wanted.name: datums if wanted.per == "datum" else rows for wanted in self.spec.inputs}
        inputs = {name: None if value is None else value[per[name]] for name, value in self.inputs.items()}
        active, weights = self.active[positions], self.weights[rows]
        return Packed(self.spec, self.config, lengths, tokens, active, weights, inputs, self.is_even, prompts=prompts)


def blocks(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Indices of consecutive blocks: for each i, starts[i] up to starts[i] + lengths[i] - 1."""
    return np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)


def row_sums(values: Tensor) -> Tensor:
    """[T] unchanged, [T, K] summed over K. `reshape(T, -1)` raises for an empty tensor."""
    return values if values.ndim == 1 else values.sum(1)
