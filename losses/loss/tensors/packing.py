"""From a call's tensors to what a loss's function reads: packed positions, denominators, and every number checked.

The host reads a device once: mask, boundaries, numbers per row, and whether anything is wrong elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....datums.errors import LabelError, LossbookError, NonFiniteLossInput, ShapeError, TokenRangeError, WeightsError
from ....datums.inputs import MAX_LOGPROB, key_kind
from ...batch.checks import are_ids, check_pairs, wrong_value
from ...batch.pack import as_read, counts_of, laid_out
from ...batch.packed import Packed
from ...batch.positions import active_positions, active_targets, has_columns, weighted_positions
from ...spec.spec import Input
from .call import Call, Part
from .host import to_device, to_host

CPU = torch.device("cpu")


@dataclass
class Host:
    """A call's numbers on the host: lengths [rows], weights [positions] or [positions, K] (None for none), inputs per row."""

    lengths: np.ndarray
    weights: Tensor | None
    per_row: dict[str, Tensor]
    others: dict[str, Tensor]


class Reader:
    """The numbers of one call, read once, and the packed tensors of each part."""

    def __init__(self, call: Call, others: Mapping[str, Tensor] | None = None) -> None:
        """others: further tensors that the host wants to know, such as a denominator."""
        self.call = call
        for _, part in call.loss.parts:
            if part.spec.reads_tokens and not part.spec.is_batch_style:
                self._ask(part)
        self.host = self._read(others or {})

    def weights(self, part: Part, device: torch.device | None = None) -> Tensor:
        """[positions] or [positions, K] float weights, on a device or where the mask is; ones where there is no mask."""
        mask = self.call.mask
        if mask is None:
            return torch.ones(self.call.mask_shape(part.spec), dtype=torch.float32, device=device)
        return as_weights(mask if device is None else to_device(mask, device))

    def packed(self, part: Part) -> Packed:
        """What the loss reads, apart from model outputs. Weights and numbers per row are on the CPU, others where they were."""
        spec, row = part.spec, self.call.layout.row
        if not spec.reads_tokens:
            return self._packed_rows(part)
        weights = self.weights(part, CPU) if self.host.weights is None else self.host.weights
        self._check_weights(part, weights)
        active = active_positions(active_targets(weights.numpy(), spec))
        tokens = counts_of(active, self.host.lengths)
        self._check_rows(part, tokens > 0)
        if spec.per == "pair":
            check_pairs(tokens, self.call.layout.rows, row)
        chosen = Chosen(torch.from_numpy(np.flatnonzero(active)), tokens)
        inputs = {one.name: self._input(part, one, chosen) for one in spec.inputs}
        own = weights[chosen.positions]
        return laid_out(Packed(spec, part.config, self.host.lengths, tokens, torch.from_numpy(active), own, inputs))

    def _packed_rows(self, part: Part) -> Packed:
        rows = self.call.layout.rows
        if part.spec.per == "pair" and rows % 2:
            raise ShapeError(f"pairs are rows 2i and 2i+1, but there are {rows} rows")
        ones = np.ones(rows, dtype=np.int64)
        self._check_rows(part, ones > 0)
        inputs = {one.name: self.host.per_row.get(one.name) for one in part.spec.inputs}
        weights = torch.ones(rows, dtype=torch.float32, device="cpu")
        return laid_out(Packed(part.spec, part.config, ones, ones, weights.bool(), weights, inputs))

    def where(self, flat: int) -> tuple[int, int]:
        """Which (row, position) the `flat`-th position is."""
        lengths = self.call.layout.lengths(self._ends)
        ends = np.cumsum(lengths)
        row = int(np.searchsorted(ends, flat, side="right"))
        return row, flat - int(ends[row] - lengths[row])

    def _ask(self, part: Part) -> None:
        """Put the checks of a part's numbers per position among those that the read answers."""
        spec, call = part.spec, self.call
        for name in spec.outputs:
            if name in call.outputs and name != "embeddings":
                self.ask_output(part, name, call.outputs[name])
        for one in spec.inputs:
            level, values = call.inputs.get(one.name, ("row", None))
            if values is None or level == "row" or one.per == "datum":
                continue
            weights = self.weights(part, values.device)
            read, checked = as_read(values, weights, one.name, spec)
            if read.is_floating_point():
                highest = MAX_LOGPROB if one.kind == "logprob" else None
                call.checks.add(
                    _wrong(read, highest) & checked, self._wrong_number(part, one.name, values, checked, highest)
                )
            if one.name == spec.candidates:
                nothing = (values == -torch.inf).all(1) & active_targets(weights)
                call.checks.add(nothing, self._no_candidate(part, nothing, values.shape[1]))

    def ask_output(self, part: Part, name: str, values: Tensor) -> None:
        """Ask whether an output [positions] or [positions, K] is finite where it counts, and at most 0 where it must be."""
        detached, spec = values.detach(), part.spec
        checked = weighted_positions(self.weights(part, values.device), detached)
        marks = self.call.inputs.get(spec.candidates or "")
        if name == "logprobs" and marks is not None:
            checked = checked & (marks[1].to(values.device) != -torch.inf)
        highest = MAX_LOGPROB if key_kind(name) == "logprob" else None
        error = self._wrong_number(part, name, detached, checked, highest)
        self.call.checks.add(_wrong(detached, highest) & checked, error)

    def ask_labels(self, vocabulary: int) -> None:
        """Ask whether labels that count lie in the vocabulary."""
        labels, mask = self.call.labels, self.call.mask
        assert labels is not None
        assert mask is not None
        outside = ((labels < 0) | (labels >= vocabulary)) & weighted_positions(as_weights(mask), labels).to(
            labels.device
        )

        def error() -> LossbookError:
            at = outside.nonzero()[0].tolist()
            row, position = self.where(at[0])
            return TokenRangeError(
                f"labels of {self.call.layout.row} {row} is {int(labels[tuple(at)])} at position {position}, outside the "
                f"vocabulary [0, {vocabulary}). To ignore a position give it the label -100, or the mask 0"
            )

        self.call.checks.add(outside, error)

    def _wrong_number(self, part: Part, name: str, values: Tensor, checked: Tensor, highest: float | None) -> Any:
        def error() -> LossbookError:
            at = (_wrong(values, highest) & checked).nonzero()[0].tolist()
            row, position = self.where(at[0])
            value = float(values[tuple(at)])
            which = f", candidate {at[1]}" if len(at) > 1 else ""
            return wrong_value(
                f"{part.name}: {name} of {self.call.layout.row} {row} is {value:g} at position {position}{which}", value
            )

        return error

    def _no_candidate(self, part: Part, nothing: Tensor, width: int) -> Any:
        def error() -> LossbookError:
            row, position = self.where(int(nothing.nonzero()[0]))
            return NonFiniteLossInput(
                f"{part.name}: {part.spec.candidates} of {self.call.layout.row} {row} is -inf for all {width} candidates at "
                f"position {position}, where the mask is not 0. Give the position mask 0, or at least one candidate"
            )

        return error

    def _read(self, others: Mapping[str, Tensor]) -> Host:
        call, layout = self.call, self.call.layout
        wanted = {
            f"input {key}": values for key, (level, values) in call.inputs.items() if self._is_per_row(key, level)
        }
        wanted |= {f"other {key}": value for key, value in others.items()}
        wanted |= {} if layout.cu_seqlens is None else {"cu_seqlens": layout.cu_seqlens}
        wanted |= {} if call.mask is None else {"mask": call.mask}
        host = to_host({**wanted, **call.checks.flags})
        ends = host.get("cu_seqlens")
        self._ends = None if ends is None else ends.numpy()
        lengths = layout.lengths(self._ends) if layout.shape else np.zeros(layout.rows, dtype=np.int64)
        if call.mask is not None:
            self._check_mask(host["mask"])
        call.checks.raise_first(host)
        return Host(
            lengths,
            None if call.mask is None else as_weights(host["mask"]),
            _under("input ", host),
            _under("other ", host),
        )

    def _is_per_row(self, key: str, level: str) -> bool:
        """Whether the host needs an input: it is one per row."""
        specs = [part.spec for _, part in self.call.loss.parts]
        return level == "row" or any(one.name == key and one.per == "datum" for spec in specs for one in spec.inputs)

    def _check_mask(self, mask: Tensor) -> None:
        """Whole numbers are 0 or 1, as in a mask; floats are weights, and finite."""
        wrong = ~torch.isfinite(mask) if mask.is_floating_point() else (mask != 0) & (mask != 1)
        if not bool(wrong.any()):
            return
        at = wrong.nonzero()[0].tolist()
        row, position = self.where(at[0])
        value = float(mask[tuple(at)])
        what = f"mask of {self.call.layout.row} {row} is {value:g} at position {position}"
        if mask.is_floating_point():
            raise NonFiniteLossInput(f"{self.call.loss.name}: {what}")
        raise WeightsError(
            f"{self.call.loss.name}: {what}: a mask of integers is 0 or 1. Real weights are floats; the numbers of packed "
            "sequences go into cu_seqlens"
        )

    def _check_weights(self, part: Part, weights: Tensor) -> None:
        """A mean is not divided by negative weights."""
        if part.reduction == "sum" or not bool((weights < 0).any()):
            return
        at = (weights < 0).nonzero()[0].tolist()
        row, position = self.where(at[0])
        raise WeightsError(
            f"{part.name}: mask of {self.call.layout.row} {row} is {float(weights[tuple(at)]):g} at position {position}, and "
            f"reduction {part.reduction!r} cannot divide by negative weights. Reduction 'sum' takes any real weights"
        )

    def _check_rows(self, part: Part, active: np.ndarray) -> None:
        """Numbers per row are finite where the row counts, and flags 0 or 1, ids integers, log-probabilities at most 0."""
        for one in part.spec.inputs:
            if (given := self.host.per_row.get(one.name)) is not None:
                _check_row_values(part.name, self.call.layout.row, one, given.numpy(), active)

    def _input(self, part: Part, wanted: Input, chosen: Chosen) -> Tensor | None:
        """An input at the active positions, or of the active rows."""
        if wanted.name not in self.call.inputs:
            return None
        values = self.host.per_row.get(wanted.name)
        if wanted.per == "datum":
            assert values is not None
            return values[chosen.rows]
        if values is not None:
            values = values[chosen.row_of_position]
        else:
            values = self.call.inputs[wanted.name][1]
            values = values[chosen.on(values.device)]
        weights = self.weights(part, values.device)[chosen.on(values.device)]
        if has_columns(weights, part.spec) and values.ndim == 1:  # one number for each of K targets
            values = values.unsqueeze(1).expand(weights.shape)
        return as_read(values, weights, wanted.name, part.spec)[0]


@dataclass
class Chosen:
    """The active positions, as indices of all, and how many there are in each row [rows]."""

    positions: Tensor
    tokens: np.ndarray
    _elsewhere: dict[torch.device, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> Tensor:
        """Indices of the rows with an active position."""
        return torch.from_numpy(np.flatnonzero(self.tokens))

    @property
    def row_of_position(self) -> Tensor:
        """The row of each active position."""
        return torch.from_numpy(np.repeat(np.arange(len(self.tokens)), self.tokens))

    def on(self, device: torch.device) -> Tensor:
        """The active positions on a device, copied there once."""
        return self._elsewhere.setdefault(device, to_device(self.positions, device))


def as_weights(mask: Tensor) -> Tensor:
    """A mask as float weights: float64 stays, anything else is float32."""
    return mask if mask.dtype in (torch.float32, torch.float64) else mask.float()


def _wrong(values: Tensor, highest: float | None) -> Tensor:
    """Where a number is not finite, or above the highest that it may be."""
    wrong = ~torch.isfinite(values)
    return wrong if highest is None else wrong | (values > highest)


def _under(prefix: str, host: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in host.items() if name.startswith(prefix)}


def _check_row_values(loss: str, row: str, wanted: Input, values: np.ndarray, active: np.ndarray) -> None:
    wrong = ~np.isfinite(values)
    if wanted.per == "token" and wanted.kind == "logprob":
        wrong |= values > MAX_LOGPROB
    if wanted.is_flag:
        wrong |= (values != 0) & (values != 1)
    if wanted.is_id and values.dtype.kind == "f":
        wrong |= np.array([not are_ids(one) for one in values.reshape(-1, 1)], dtype=bool)
    if not (wrong & active).any():
        return
    at = int(np.flatnonzero(wrong & active)[0])
    value = float(values[at])
    what = f"{loss}: {wanted.name} of {row} {at} is {value:g}"
    if np.isfinite(value) and wanted.is_flag:
        raise LabelError(f"{what}: it must be 0 or 1.{' Did you mean 0?' if value == -1 else ''}")
    if np.isfinite(value) and wanted.is_id:
        raise LabelError(f"{what}: give an integer")
    raise wrong_value(what, value)
