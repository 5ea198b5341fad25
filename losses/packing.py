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

from ..datums.errors import (
    AlignmentError,
    InvalidLogprobError,
    LengthMismatchError,
    MissingInput,
    NonFiniteLossInput,
    ShapeError,
    did_you_mean,
)
from ..datums.types import Datum
from .signature import Input, LossSpec, Per

#: Log-probabilities are at most 0; anything above this is no rounding error.
MAX_LOGPROB = 1e-4


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
        return self.plain_sum(values * (weights if weights.ndim == values.ndim else weights.unsqueeze(-1)))

    def mean(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """[T] to [N]: means over each datum's tokens, or over those where `mask` is true (0 where there are none)."""
        counted = torch.ones_like(values) if mask is None else mask.to(values)
        kept = values if mask is None else torch.where(mask.bool(), values, torch.zeros_like(values))
        total = self.sum(counted)
        return self.sum(kept) / torch.where(total == 0, torch.ones_like(total), total)

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
    kept: indices of the datums it sees. weights: [T] or [T, K] over active positions.
    inputs: packed tensors by name (None: absent and optional).
    """

    per: Per
    lengths: list[int]
    active: Tensor
    kept: list[int]
    weights: Tensor
    inputs: dict[str, Tensor | None]
    seqs: Seqs
    units: int

    @cached_property
    def weight_per_datum(self) -> Tensor:
        """[N] float64: the sum of each kept datum's weights."""
        return self.seqs.plain_sum(self.weights.double().reshape(len(self.weights), -1).sum(1))

    @cached_property
    def all_active(self) -> bool:
        """Whether no position is left out."""
        return bool(self.active.all())


def pack(datums: Sequence[Datum], spec: LossSpec, reduction: str, config: object) -> Packed:
    """Pack what `spec` reads. Raises the errors of missing, misaligned, ill-shaped and non-finite inputs."""
    if not spec.reads_tokens:
        return _pack_whole_datums(datums, spec, config)
    weights, lengths = _weights(datums, spec, reduction)
    rows = weights.reshape(len(weights), -1)
    active = np.ones(len(rows), dtype=bool) if spec.wants_weights else (rows != 0).any(axis=1)
    owner = np.repeat(np.arange(len(datums)), lengths)
    active_per_datum = np.bincount(owner[active], minlength=len(datums))
    kept = np.flatnonzero(active_per_datum > 0)
    if spec.per == "pair":
        _check_pairs(active_per_datum, len(datums))
    packed_weights = torch.from_numpy(weights[active])
    masked = packed_weights == 0 if weights.ndim == 2 and not spec.wants_weights else None
    inputs: dict[str, Tensor | None] = {}
    for wanted in spec.inputs:
        inputs[wanted.name] = _input(datums, spec, wanted, weights.shape, active, kept, masked, lengths)
    seqs = Seqs(active_per_datum[kept], weights=None if spec.per == "token" else packed_weights)
    units = {"token": int(active.sum()), "datum": len(kept), "pair": len(kept) // 2, "batch": 1}[spec.per]
    if spec.units is not None:
        units = spec.units(len(kept), config)
    return Packed(spec.per, lengths, torch.from_numpy(active), kept.tolist(), packed_weights, inputs, seqs, units)


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


def join(arrays: Sequence[np.ndarray], width: int | None, dtype: np.dtype | type) -> np.ndarray:
    """Arrays [N_i] or [N_i, K_i] joined to [T] or [T, width]; narrower rows are filled up with zeros."""
    if width is None:
        return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype=dtype)
    joined = np.zeros((sum(len(a) for a in arrays), width), dtype=dtype)
    start = 0
    for array in arrays:
        columns = array.reshape(len(array), -1)
        joined[start : start + len(array), : columns.shape[1]] = columns
        start += len(array)
    return joined


def _weights(datums: Sequence[Datum], spec: LossSpec, reduction: str) -> tuple[np.ndarray, list[int]]:
    width = width_of(datums)
    arrays: list[np.ndarray] = []
    lengths: list[int] = []
    for i, datum in enumerate(datums):
        positions = positions_of(datum)
        targets = datum.loss_fn_inputs.get("target_tokens")
        shape = tuple(targets.shape) if targets is not None else (positions,)
        given = datum.loss_fn_inputs.get("weights")
        if given is None:
            if reduction != "sum":
                raise MissingInput(
                    f"{spec.name} with reduction {reduction!r} reads 'weights', which datum {i} of {len(datums)} does not "
                    f"carry. It carries: {_keys(datum)}.{_hint('weights', datum)} Only under reduction 'sum' do missing "
                    "weights mean ones; they are never guessed from the advantages"
                )
            array = np.ones(shape, dtype=np.float32)
        else:
            array = given.to_numpy()
            _check_length(array, shape, "weights", i, len(datums))
            array = array.reshape(shape)
        if not np.isfinite(array).all():
            _raise_non_finite(array, "weights", i, len(datums), spec.name)
        arrays.append(array)
        lengths.append(positions)
    return join(arrays, width, np.float32), lengths


def _input(
    datums: Sequence[Datum],
    spec: LossSpec,
    wanted: Input,
    shape: tuple[int, ...],
    active: np.ndarray,
    kept: np.ndarray,
    masked: Tensor | None,
    lengths: Sequence[int],
) -> Tensor | None:
    """One input, packed over active positions (or over kept datums for `PerDatum`)."""
    arrays = _collect(datums, spec, wanted)
    if arrays is None:
        return None
    if wanted.per == "datum":
        return _per_datum([arrays[i] for i in kept], wanted, kept, spec)
    for i, array in enumerate(arrays):
        if array.ndim == 0:  # a scalar holds for the whole datum
            arrays[i] = array = np.broadcast_to(array, (lengths[i],))
        _check_length(array, (lengths[i],), wanted.name, i, len(datums), rows=True)
    is_wide = any(a.ndim == 2 for a in arrays)
    width = max((a.shape[1] for a in arrays if a.ndim == 2), default=None) if is_wide else None
    dtype = np.result_type(*{a.dtype for a in arrays}) if arrays else np.dtype(np.float32)
    values = torch.from_numpy(join(arrays, width, dtype)[active])
    if masked is not None and values.shape == masked.shape:
        values = values.masked_fill(masked, 0)
    _check_values(values, wanted, spec, active, lengths)
    return values


def _collect(datums: Sequence[Datum], spec: LossSpec, wanted: Input) -> list[np.ndarray] | None:
    found = [
        next((datum.loss_fn_inputs[key] for key in wanted.keys if key in datum.loss_fn_inputs), None)
        for datum in datums
    ]
    if not wanted.required and all(value is None for value in found):
        return None
    for i, value in enumerate(found):
        if value is None:
            raise MissingInput(_missing(datums[i], i, len(datums), spec, wanted))
    return [value.to_numpy() for value in found if value is not None]


def _per_datum(arrays: Sequence[np.ndarray], wanted: Input, kept: np.ndarray, spec: LossSpec) -> Tensor:
    for i, array in zip(kept, arrays, strict=True):
        if array.size != 1:
            raise ShapeError(
                f"{spec.name} reads one {wanted.name!r} a datum, but datum {i} carries {array.size} numbers"
            )
        if not np.isfinite(array).all():
            raise NonFiniteLossInput(f"{spec.name}: {wanted.name} of datum {i} is {float(array.reshape(-1)[0])}")
    return torch.from_numpy(
        np.array([a.reshape(-1)[0] for a in arrays], dtype=arrays[0].dtype if arrays else np.float32)
    )


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
        units = spec.units(len(datums), config)
    ones = torch.ones(len(datums))
    return Packed(spec.per, [1] * len(datums), ones.bool(), kept.tolist(), ones, inputs, Seqs([1] * len(datums)), units)


def _check_length(
    array: np.ndarray, shape: tuple[int, ...], key: str, datum: int, total: int, *, rows: bool = False
) -> None:
    expected = shape[0] if rows else int(np.prod(shape))
    given = len(array) if rows and array.ndim else array.size
    if given == expected:
        return
    message = f"datum {datum} of {total}: {key} has {given} entries, but there are {expected} target positions"
    if len(shape) == 2 and given == shape[0]:
        message = f"datum {datum} of {total}: {key} has {given} values but target_tokens is {list(shape)}: "
        message += f"it needs {expected} (N*K) values in row-major order"
    elif abs(given - expected) == 1:
        message += (
            ". Off by one: was it made for the unshifted tokens? datum_from_tokens_weights shifts tokens and weights "
            "together"
        )
    raise LengthMismatchError(message)


def _check_pairs(active_per_datum: np.ndarray, total: int) -> None:
    if total % 2:
        raise ShapeError(f"pairs are datums 2i (chosen) and 2i+1 (rejected), but there are {total} datums")
    alive = (active_per_datum > 0).reshape(-1, 2)
    lone = np.flatnonzero(alive[:, 0] != alive[:, 1])
    if len(lone):
        i = int(lone[0]) * 2 + int(alive[lone[0], 0])
        raise AlignmentError(
            f"datum {i} of {total} has no position of non-zero weight while its partner {i ^ 1} has: the pair cannot be "
            "compared. Was its response truncated away?"
        )


def _check_values(values: Tensor, wanted: Input, spec: LossSpec, active: np.ndarray, lengths: Sequence[int]) -> None:
    if not values.is_floating_point():
        return
    wrong = ~torch.isfinite(values)
    is_logprob = wanted.name.endswith("logprobs")
    if is_logprob:
        wrong |= values > MAX_LOGPROB
    if not bool(wrong.any()):
        return
    where = int(wrong.reshape(len(values), -1).any(1).nonzero()[0])
    value = float(values.reshape(len(values), -1)[where][wrong.reshape(len(values), -1)[where]][0])
    datum, position = locate(where, active, lengths)
    if is_logprob and value > MAX_LOGPROB and np.isfinite(value):
        raise InvalidLogprobError(
            f"{spec.name}: {wanted.name} of datum {datum} is {value:g} at position {position}: a log-probability is at "
            "most 0. Are these probabilities, or negated log-probabilities?"
        )
    raise NonFiniteLossInput(
        f"{spec.name}: {wanted.name} of datum {datum} is {value} at position {position}, where the weight is not 0. "
        "Give the position weight 0, or mend the value"
    )


def locate(row: int, active: np.ndarray, lengths: Sequence[int]) -> tuple[int, int]:
    """Which (datum, position) the `row`-th active position is."""
    flat = int(np.flatnonzero(active)[row])
    ends = np.cumsum(lengths)
    datum = int(np.searchsorted(ends, flat, side="right"))
    return datum, flat - (int(ends[datum - 1]) if datum else 0)


def _raise_non_finite(array: np.ndarray, key: str, datum: int, total: int, name: str) -> None:
    flat = array.reshape(len(array), -1)
    row = int(np.flatnonzero(~np.isfinite(flat).all(axis=1))[0])
    raise NonFiniteLossInput(f"{name}: {key} of datum {datum} of {total} is not finite at position {row}: {flat[row]}")


def _keys(datum: Datum) -> str:
    return ", ".join(sorted(datum.loss_fn_inputs)) or "nothing"


def _hint(name: str, datum: Datum) -> str:
    hint = did_you_mean(name, datum.loss_fn_inputs)
    return f"{hint[:-1]} to be {name!r}?" if hint else ""


def _missing(datum: Datum, index: int, total: int, spec: LossSpec, wanted: Input) -> str:
    aliases = "".join(f" (or {key!r})" for key in wanted.keys[1:])
    return (
        f"{spec.name} reads {wanted.name!r}{aliases}, which datum {index} of {total} does not carry. "
        f"It carries: {_keys(datum)}.{_hint(wanted.name, datum)}"
    )
