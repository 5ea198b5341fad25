"""From datums to packed tensors: all datums' tokens in one row, masked positions left out.

A loss sees only what is packed here, so it cannot read a masked token, and no padding exists to get wrong. All datums are
checked together; only when something is wrong is the datum and position looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import AlignmentError, ShapeError
from ...datums.types import Datum
from ..spec.settings import WEIGHTS_KEY, Settings
from ..spec.spec import GROUP_KEY, Input, LossSpec
from .checks import (
    are_ids,
    check_candidates,
    check_finite,
    check_length,
    check_one_column,
    check_one_per_datum,
    check_one_target,
    check_pairs,
    check_some_present,
    check_values,
    check_vector,
    check_weights_shape,
    missing_input,
    missing_weights,
)
from .packed import Packed
from .positions import (
    active_positions,
    active_targets,
    harmless,
    has_columns,
    target_shape,
    weighted_positions,
)
from .prompts import Prompts


def pack(datums: Sequence[Datum], spec: LossSpec, settings: Settings) -> Packed:
    """Pack what `spec` reads. Raises the errors of missing, misaligned, ill-shaped and non-finite inputs."""
    if not spec.reads_tokens:
        return _pack_whole_datums(datums, spec, settings.config)
    shapes = [target_shape(datum) for datum in datums]
    lengths = np.array([shape[0] for shape in shapes], dtype=np.int64)
    check_one_target(shapes, spec)
    weights, is_even = _weights(datums, spec, settings, shapes)
    active = active_positions(active_targets(weights, spec))
    tokens = counts_of(active, lengths)
    if spec.per == "pair":
        check_pairs(tokens, len(datums))
    layout = _Layout(datums, spec, shapes, lengths, active, torch.from_numpy(weights[active]))
    inputs: dict[str, Tensor | None] = {}
    for wanted in spec.inputs:
        inputs[wanted.name], is_even_too = _input(layout, wanted, np.flatnonzero(tokens))
        is_even = is_even and is_even_too
    packed = Packed(spec, settings.config, lengths, tokens, torch.from_numpy(active), layout.weights, inputs, is_even)
    if packed.absent is not None:
        check_some_present(packed.absent, spec, active, lengths)
    return laid_out(packed)


def counts_of(active: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[N]: how many of each datum's positions are true in `active` [all positions]."""
    before = np.concatenate([[0], np.cumsum(active)])
    ends = np.cumsum(lengths)
    return before[ends] - before[ends - lengths]


def join(arrays: Sequence[np.ndarray], width: int | None, dtype: np.dtype | type, fill: float = 0) -> np.ndarray:
    """Arrays [N_i] or [N_i, K_i] joined to [T] or [T, width]; narrower rows are filled up with `fill`."""
    if width is None:
        return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype=dtype)
    if arrays and all(array.ndim == 2 and array.shape[1] == width for array in arrays):
        return np.concatenate(arrays).astype(dtype, copy=False)
    joined = np.full((sum(len(a) for a in arrays), width), fill, dtype=dtype)
    start = 0
    for array in arrays:
        columns = array[:, None] if array.ndim == 1 else array
        joined[start : start + len(array), : columns.shape[1]] = columns
        start += len(array)
    return joined


def _weights(
    datums: Sequence[Datum], spec: LossSpec, settings: Settings, shapes: list[tuple[int, ...]]
) -> tuple[np.ndarray, bool]:
    """[T] or [T, K] float32 of all positions, and whether all targets have as many columns."""
    total, key = len(datums), settings.weights or WEIGHTS_KEY
    if spec.candidates:
        for i, datum in enumerate(datums):
            check_candidates(datum, i, total, spec, key)
        shapes = [shape[:1] for shape in shapes]
    given = [datum.loss_fn_inputs.get(key) for datum in datums]
    may_lack = settings.reduction == "sum" and key == WEIGHTS_KEY
    if not may_lack and (lacking := _first_none(given)) is not None:
        raise missing_weights(datums[lacking], lacking, total, spec, settings)
    arrays = [
        np.ones(shape, dtype=np.float32) if value is None else value.to_numpy()
        for value, shape in zip(given, shapes, strict=True)
    ]
    if [array.shape for array in arrays] != shapes:
        for i, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
            check_weights_shape(array, shape, key, i, total)
            arrays[i] = array.reshape(shape)
    columns = {shape[1] if len(shape) == 2 else None for shape in shapes}
    joined = join(arrays, max((k for k in columns if k is not None), default=None), np.float32)
    if not np.isfinite(joined).all():
        for i, array in enumerate(arrays):
            check_finite(array, key, i, total, spec)
    return joined, len(columns) <= 1


@dataclass
class _Layout:
    """What packing an input needs: the datums and their shapes of targets, the active positions, and their weights."""

    datums: Sequence[Datum]
    spec: LossSpec
    shapes: list[tuple[int, ...]]
    lengths: np.ndarray
    active: np.ndarray
    weights: Tensor


def _input(layout: _Layout, wanted: Input, datums: np.ndarray) -> tuple[Tensor | None, bool]:
    """One input, packed over active positions (or active `datums` for `PerDatum`), and whether its columns are even."""
    spec = layout.spec
    arrays = _collect(layout.datums, spec, wanted)
    if arrays is None:
        return None, True
    if wanted.per == "datum":
        return _per_datum([arrays[i] for i in datums], wanted, datums, spec), True
    arrays = _rows(layout, wanted, arrays)
    columns = {a.shape[1] if a.ndim == 2 else None for a in arrays}
    width = max((k for k in columns if k is not None), default=None)
    if wanted.name == spec.candidates and width is None:
        width = 1  # of no datums: [0, 1]
    dtype = np.result_type(*{a.dtype for a in arrays}) if arrays else np.dtype(np.float32)
    fill = -np.inf if wanted.name == spec.candidates else 0
    values = torch.from_numpy(join(arrays, width, dtype, fill)[layout.active])
    values, checked = as_read(values, layout.weights, wanted.name, spec)
    check_values(values, checked, wanted, spec, layout.active, layout.lengths)
    return values, len(columns) <= 1


def as_read(values: Tensor, weights: Tensor, name: str, spec: LossSpec) -> tuple[Tensor, Tensor]:
    """Input `name` as the loss reads it, of values at some positions and their weights; and which of them must be finite."""
    if values.shape == weights.shape and has_columns(weights, spec):
        values = values.masked_fill(~active_targets(weights, spec), 0)
    if spec.wants_weights:
        values = harmless(values, weights)
    checked = weighted_positions(weights, values)
    if name == spec.candidates:
        checked = checked & (values != -torch.inf)
    return values, checked


def _rows(layout: _Layout, wanted: Input, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Each datum's numbers, one row per position; beside [T, K] logprobs one column per target."""
    if [array.shape for array in arrays] == layout.shapes:
        return arrays
    over_targets = has_columns(layout.weights, layout.spec)
    rows: list[np.ndarray] = []
    for i, (array, shape) in enumerate(zip(arrays, layout.shapes, strict=True)):
        if array.ndim == 0:  # a scalar holds for the whole datum
            array = np.broadcast_to(array, shape[:1])
        if len(array) != shape[0]:
            check_length(len(array), (shape[0],), wanted.name, i, len(arrays))
        check_one_column(array, shape, i, len(arrays), layout.spec, wanted)
        if over_targets and array.ndim == 1:  # a [T] would be taken for one row of K
            array = np.broadcast_to(array[:, None], (len(array), shape[1] if len(shape) == 2 else 1))
        rows.append(array)
    return rows


def _collect(datums: Sequence[Datum], spec: LossSpec, wanted: Input) -> list[np.ndarray] | None:
    values = [datum.loss_fn_inputs.get(wanted.name) for datum in datums]
    for key in wanted.keys[1:]:
        values = [d.loss_fn_inputs.get(key) if v is None else v for v, d in zip(values, datums, strict=True)]
    if not wanted.required and all(value is None for value in values):
        return None
    if (lacking := _first_none(values)) is not None:
        raise missing_input(datums[lacking], lacking, len(datums), spec, wanted)
    return [value.to_numpy() for value in values if value is not None]


def _first_none(values: Sequence[object]) -> int | None:
    return next((i for i, value in enumerate(values) if value is None), None)


def _per_datum(arrays: Sequence[np.ndarray], wanted: Input, datums: np.ndarray, spec: LossSpec) -> Tensor:
    if wanted.is_vector:
        return _vectors(arrays, wanted, datums, spec)
    if not arrays:
        return torch.zeros(0, dtype=torch.float32, device="cpu")
    # The common type of all: the first datum's alone would cut 0.5 to 0 behind a 1.
    joined = np.concatenate([a.reshape(-1) for a in arrays])
    is_fine = all(a.size == 1 for a in arrays) and np.isfinite(joined).all()
    is_fine = is_fine and (not wanted.is_id or are_ids(joined))
    if not is_fine or (wanted.is_flag and not np.isin(joined, (0, 1)).all()):
        for i, array in zip(datums, arrays, strict=True):
            check_one_per_datum(array, int(i), spec, wanted)
    return torch.from_numpy(joined)


def _vectors(arrays: Sequence[np.ndarray], wanted: Input, datums: np.ndarray, spec: LossSpec) -> Tensor:
    """[N, D] floats of one vector per datum; [0, 1] of no datums."""
    if not arrays:
        return torch.zeros(0, 1, dtype=torch.float32, device="cpu")
    width = arrays[0].size
    is_even = width > 0 and all(array.shape == (width,) for array in arrays)
    if not is_even or not all(np.isfinite(array).all() for array in arrays):
        for i, array in zip(datums, arrays, strict=True):
            check_vector(array, int(i), width, spec, wanted)
    joined = np.stack(arrays)
    return torch.from_numpy(joined if joined.dtype.kind == "f" else joined.astype(np.float32))


def _pack_whole_datums(datums: Sequence[Datum], spec: LossSpec, config: object) -> Packed:
    ones = np.ones(len(datums), dtype=np.int64)
    inputs: dict[str, Tensor | None] = {}
    for wanted in spec.inputs:
        arrays = _collect(datums, spec, wanted)
        inputs[wanted.name] = None if arrays is None else _per_datum(arrays, wanted, np.arange(len(datums)), spec)
    if spec.per == "pair" and len(datums) % 2:
        raise ShapeError(f"pairs are datums 2i and 2i+1, but there are {len(datums)} datums")
    weights = torch.ones(len(datums), dtype=torch.float32, device="cpu")
    return laid_out(Packed(spec, config, ones, ones, weights.bool(), weights, inputs))


def laid_out(packed: Packed) -> Packed:
    """The same, with the weights of its prompts; raises where the datums are not laid out as the loss needs them."""
    if getattr(packed.config, "reduction", None) == "prompt-mean":
        ids = packed.inputs[GROUP_KEY]
        assert ids is not None, "a loss with this reduction reads the key"
        packed.prompts = Prompts.of(ids, packed.weight_per_datum)
    spec, datums = packed.spec, len(packed.tokens)
    is_partial = spec.reads_tokens and spec.couples == "batch" and 0 < len(packed.active_datums) < datums
    if is_partial and spec.members(datums, packed.config) is not None:
        raise AlignmentError(
            f"{spec.name} knows datums by their places, and datum {int(np.flatnonzero(packed.tokens == 0)[0])} of {datums} has no "
            "position of non-zero weight. Was it truncated away? Leave out its row"
        )
    if spec.groups is not None:
        _ = packed.value_count
    return packed
