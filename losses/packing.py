"""From datums to packed tensors: all datums' tokens in one row, masked positions left out.

A loss sees only what is packed here, so it cannot read a masked token, and no padding exists to get wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..datums.errors import ShapeError
from ..datums.types import Datum
from .input_checks import (
    check_candidates,
    check_finite,
    check_length,
    check_one_a_datum,
    check_one_target,
    check_pairs,
    check_some_present,
    check_values,
    check_weights_shape,
    missing_input,
    missing_weights,
)
from .signature import Input, LossSpec, Per


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
        return values.new_zeros((self.count, *values.shape[1:])).index_add(0, self.index, values)

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
        weights = None if self._weights is None else self._weights.to(like)
        return Seqs(self.lengths, weights=weights, device=like.device)


@dataclass
class Packed:
    """What one loss reads of some datums, apart from the model's outputs.

    lengths: positions of each datum. active: [positions of all datums] bool, which of them the loss sees.
    kept: indices of the datums it sees. weights: [T] or [T, K] over active positions. absent: [T, K] bool, in losses
    over candidates: which of them a position lacks.
    inputs: packed tensors by name (None: absent and optional); one number a position is [T], or [T, K] beside [T, K]
    logprobs, except in a loss that wants weights.
    """

    per: Per
    lengths: list[int]
    active: Tensor
    kept: list[int]
    weights: Tensor
    inputs: dict[str, Tensor | None]
    seqs: Seqs
    units: int
    absent: Tensor | None = None

    @cached_property
    def weight_per_datum(self) -> Tensor:
        """[N] float64: the sum of each kept datum's weights."""
        return self.seqs.plain_sum(row_sums(self.weights.double()))

    @cached_property
    def all_active(self) -> bool:
        """Whether no position is left out."""
        return bool(self.active.all())


def pack(datums: Sequence[Datum], spec: LossSpec, reduction: str, config: object) -> Packed:
    """Pack what `spec` reads. Raises the errors of missing, misaligned, ill-shaped and non-finite inputs."""
    if not spec.reads_tokens:
        return _pack_whole_datums(datums, spec, config)
    weights, lengths = _weights(datums, spec, reduction)
    check_one_target(weights.ndim == 2, spec)
    rows = weights if weights.ndim == 2 else weights[:, None]
    active = np.ones(len(rows), dtype=bool) if spec.wants_weights else (rows != 0).any(axis=1)
    owner = np.repeat(np.arange(len(datums)), lengths)
    active_per_datum = np.bincount(owner[active], minlength=len(datums))
    kept = np.flatnonzero(active_per_datum > 0)
    if spec.per == "pair":
        check_pairs(active_per_datum, len(datums))
    packed_weights = torch.from_numpy(weights[active])
    layout = _Layout(datums, spec, lengths, active, kept, packed_weights)
    inputs = {wanted.name: _input(layout, wanted) for wanted in spec.inputs}
    seqs = Seqs(active_per_datum[kept], weights=None if spec.per == "token" else packed_weights)
    units = {"token": int(active.sum()), "datum": len(kept), "pair": len(kept) // 2, "batch": 1}[spec.per]
    if spec.units is not None:
        units = spec.units(len(kept), config, inputs)
    marked = None if spec.candidates is None else inputs[spec.candidates]
    absent = None if marked is None else marked == -torch.inf
    if absent is not None:
        check_some_present(absent, spec, active, lengths)
    kept_list = kept.tolist()
    return Packed(spec.per, lengths, torch.from_numpy(active), kept_list, packed_weights, inputs, seqs, units, absent)


def row_sums(values: Tensor) -> Tensor:
    """[T] as it is, [T, K] summed over K. Not `reshape(T, -1)`, which fails on nothing."""
    return values if values.ndim == 1 else values.sum(1)


def has_weight(weights: Tensor, like: Tensor) -> Tensor:
    """[T] or [T, 1] bool, to go with `like`: which positions have a weight at all (all but in losses that want weights)."""
    alive = weights != 0 if weights.ndim == 1 else (weights != 0).any(1)
    return alive.to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def positions_of(datum: Datum) -> int:
    """How many positions a datum has: one a target token, or one an input token where there are no targets."""
    targets = datum.loss_fn_inputs.get("target_tokens")
    return datum.model_input.length if targets is None else len(targets)


def width_of(datums: Sequence[Datum]) -> int | None:
    """K of [N, K] targets: the largest among the datums; None when all targets are [N]."""
    widths = [
        t.shape[1] for d in datums if (t := d.loss_fn_inputs.get("target_tokens")) is not None and len(t.shape) == 2
    ]
    return max(widths, default=None)


def join(arrays: Sequence[np.ndarray], width: int | None, dtype: np.dtype | type, fill: float = 0) -> np.ndarray:
    """Arrays [N_i] or [N_i, K_i] joined to [T] or [T, width]; narrower rows are filled up with `fill`."""
    if width is None:
        return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype=dtype)
    joined = np.full((sum(len(a) for a in arrays), width), fill, dtype=dtype)
    start = 0
    for array in arrays:
        columns = array.reshape(len(array), -1)
        joined[start : start + len(array), : columns.shape[1]] = columns
        start += len(array)
    return joined


def _weights(datums: Sequence[Datum], spec: LossSpec, reduction: str) -> tuple[np.ndarray, list[int]]:
    width = None if spec.candidates else width_of(datums)
    arrays: list[np.ndarray] = []
    lengths: list[int] = []
    for i, datum in enumerate(datums):
        positions = positions_of(datum)
        targets = datum.loss_fn_inputs.get("target_tokens")
        if spec.candidates:
            check_candidates(datum, i, len(datums), spec)
        shape = (positions,) if targets is None or spec.candidates else tuple(targets.shape)
        given = datum.loss_fn_inputs.get("weights")
        if given is None:
            if reduction != "sum":
                raise missing_weights(datum, i, len(datums), spec, reduction)
            array = np.ones(shape, dtype=np.float32)
        else:
            array = given.to_numpy()
            check_weights_shape(array, shape, i, len(datums))
            array = array.reshape(shape)
        check_finite(array, "weights", i, len(datums), spec)
        arrays.append(array)
        lengths.append(positions)
    return join(arrays, width, np.float32), lengths


@dataclass
class _Layout:
    """What packing an input needs to know: whose it is, and which positions and datums are kept."""

    datums: Sequence[Datum]
    spec: LossSpec
    lengths: list[int]
    active: np.ndarray
    kept: np.ndarray
    weights: Tensor


def _input(layout: _Layout, wanted: Input) -> Tensor | None:
    """One input, packed over active positions (or over kept datums for `PerDatum`)."""
    datums, spec, lengths = layout.datums, layout.spec, layout.lengths
    arrays = _collect(datums, spec, wanted)
    if arrays is None:
        return None
    if wanted.per == "datum":
        return _per_datum([arrays[i] for i in layout.kept], wanted, layout.kept, spec)
    for i, array in enumerate(arrays):
        if array.ndim == 0:  # a scalar holds for the whole datum
            arrays[i] = array = np.broadcast_to(array, (lengths[i],))
        check_length(len(array), (lengths[i],), wanted.name, i, len(datums))
        if layout.weights.ndim == 2 and array.ndim == 1 and not spec.wants_weights:
            arrays[i] = _over_targets(array, datums[i])
    is_wide = any(a.ndim == 2 for a in arrays)
    width = max((a.shape[1] for a in arrays if a.ndim == 2), default=None) if is_wide else None
    dtype = np.result_type(*{a.dtype for a in arrays}) if arrays else np.dtype(np.float32)
    if wanted.name == spec.candidates and width is None:
        width = 1  # of no datums: [0, 1]
    fill = -np.inf if wanted.name == spec.candidates else 0
    values = torch.from_numpy(join(arrays, width, dtype, fill)[layout.active])
    if values.ndim == 2 and values.shape == layout.weights.shape and not spec.wants_weights:
        values = values.masked_fill(layout.weights == 0, 0)
    alive = has_weight(layout.weights, values)
    if wanted.name == spec.candidates:
        alive = alive & (values != -torch.inf)
    check_values(values, alive, wanted, spec, layout.active, lengths)
    return values


def _over_targets(array: np.ndarray, datum: Datum) -> np.ndarray:
    """One number a position as one a target: beside [T, K] logprobs a [T] would be taken for one row of K."""
    targets = datum.loss_fn_inputs.get("target_tokens")
    columns = targets.shape[1] if targets is not None and len(targets.shape) == 2 else 1
    return np.broadcast_to(array[:, None], (len(array), columns))


def _collect(datums: Sequence[Datum], spec: LossSpec, wanted: Input) -> list[np.ndarray] | None:
    found = [
        next((datum.loss_fn_inputs[key] for key in wanted.keys if key in datum.loss_fn_inputs), None)
        for datum in datums
    ]
    if not wanted.required and all(value is None for value in found):
        return None
    for i, value in enumerate(found):
        if value is None:
            raise missing_input(datums[i], i, len(datums), spec, wanted)
    return [value.to_numpy() for value in found if value is not None]


def _per_datum(arrays: Sequence[np.ndarray], wanted: Input, kept: np.ndarray, spec: LossSpec) -> Tensor:
    for i, array in zip(kept, arrays, strict=True):
        check_one_a_datum(array, int(i), spec, wanted)
    # The common type of all: the first datum's alone would cut 0.5 to 0 behind a 1.
    return torch.from_numpy(np.concatenate([a.reshape(-1) for a in arrays]) if arrays else np.zeros(0, np.float32))


def _pack_whole_datums(datums: Sequence[Datum], spec: LossSpec, config: object) -> Packed:
    kept = np.arange(len(datums))
    inputs: dict[str, Tensor | None] = {}
    for wanted in spec.inputs:
        arrays = _collect(datums, spec, wanted)
        inputs[wanted.name] = None if arrays is None else _per_datum(arrays, wanted, kept, spec)
    if spec.per == "pair" and len(datums) % 2:
        raise ShapeError(f"pairs are datums 2i and 2i+1, but there are {len(datums)} datums")
    units = {"token": 0, "datum": len(datums), "pair": len(datums) // 2, "batch": 1}[spec.per]
    if spec.units is not None:
        units = spec.units(len(datums), config, inputs)
    ones = torch.ones(len(datums))
    return Packed(spec.per, [1] * len(datums), ones.bool(), kept.tolist(), ones, inputs, Seqs([1] * len(datums)), units)
