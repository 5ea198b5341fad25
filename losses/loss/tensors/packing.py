"""From a call's tensors to what a loss's function reads: packed positions, and every number checked.

The host reads a device once: mask, boundaries, numbers per row, and whether anything is wrong elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ....datums.errors import LabelError, NonFiniteLossInput, ShapeError, WeightsError
from ....datums.inputs import MAX_LOGPROB
from ...batch.checks import are_ids, check_pairs, wrong_value
from ...batch.pack import as_read, counts_of, laid_out
from ...batch.packed import Packed
from ...batch.positions import active_positions, active_targets, has_columns
from ...spec.layers import DATUM_OUTPUTS
from ...spec.settings import WEIGHTS_KEY
from ...spec.spec import Input
from .call import Call, as_weights
from .host import to_device, to_host
from .names import Part, mask_name
from .questions import ask_embeddings, ask_input, ask_labels, ask_output


class Reader:
    """The numbers of one call that the host needs, read once, and the packed tensors of each part.

    weights: [positions] or [positions, K] on the CPU, of each mask by its key. per_row: inputs [rows] by name. others: as given.
    """

    def __init__(self, call: Call, others: Mapping[str, Tensor] | None = None, vocabulary: int | None = None) -> None:
        """others: further tensors that the host wants to know, such as a denominator. vocabulary: labels lie below it."""
        self.call = call
        if vocabulary is not None and call.labels is not None:
            ask_labels(call, call.labels, vocabulary)
        for _, part in call.loss.parts:
            if not part.spec.is_batch_style:
                self._ask(part)
        self._read(others or {})

    def _ask(self, part: Part) -> None:
        for name in part.spec.outputs:
            if name in DATUM_OUTPUTS and name in self.call.outputs:
                ask_embeddings(self.call, part, name, self.call.outputs[name])
            elif name in self.call.outputs:
                ask_output(self.call, part, name, self.call.outputs[name])
        for one in part.spec.inputs if part.spec.reads_tokens else ():
            ask_input(self.call, part, one)

    def packed(self, part: Part) -> Packed:
        """What the loss reads, apart from model outputs. Weights and numbers per row are on the CPU, others where they were."""
        spec, layout = part.spec, self.call.layout
        if not spec.reads_tokens:
            return self._packed_rows(part)
        weights = self.weights.get(part.weights or WEIGHTS_KEY)
        weights = self.call.weights(part, CPU) if weights is None else weights
        self._check_not_negative(part, weights)
        active = active_positions(active_targets(weights.numpy(), spec))
        tokens = counts_of(active, self.lengths)
        self._check_rows(part, tokens > 0)
        if spec.per == "pair":
            check_pairs(tokens, layout.rows, layout.row)
        chosen = Chosen(torch.from_numpy(np.flatnonzero(active)), tokens)
        inputs = {one.name: self._input(part, one, chosen) for one in spec.inputs}
        own = weights[chosen.positions]
        return laid_out(Packed(spec, part.config, self.lengths, tokens, torch.from_numpy(active), own, inputs))

    def check_computed(self, outputs: Mapping[str, Tensor], rows: Tensor | None) -> None:
        """Raise where an output that was computed at `rows` (None: all) of the positions is not what it must be: a read."""
        call = self.call
        for _, part in call.loss.parts:
            for name in part.spec.outputs if not part.spec.is_batch_style else ():
                if name in outputs:
                    ask_output(call, part, name, outputs[name], rows)
        call.checks.raise_first(to_host(call.checks.flags))

    def _packed_rows(self, part: Part) -> Packed:
        rows = self.call.layout.rows
        if part.spec.per == "pair" and rows % 2:
            raise ShapeError(f"pairs are rows 2i and 2i+1, but their number is {rows}")
        ones = np.ones(rows, dtype=np.int64)
        self._check_rows(part, ones.astype(bool))
        inputs = {one.name: self.per_row.get(one.name) for one in part.spec.inputs}
        weights = torch.ones(rows, dtype=torch.float32, device="cpu")
        return laid_out(Packed(part.spec, part.config, ones, ones, weights.bool(), weights, inputs))

    def _read(self, others: Mapping[str, Tensor]) -> None:
        call, layout = self.call, self.call.layout
        wanted = {
            f"input {key}": values for key, (level, values) in call.inputs.items() if self._is_per_row(key, level)
        }
        wanted |= {f"other {key}": value for key, value in others.items()}
        wanted |= {} if layout.cu_seqlens is None else {"cu_seqlens": layout.cu_seqlens}
        wanted |= {f"mask {key}": one for key, one in call.masks.items()}
        host = to_host({**wanted, **call.checks.flags})
        ends = host.get("cu_seqlens")
        call.lengths = self.lengths = layout.lengths(None if ends is None else ends.numpy())
        for key in call.masks:
            self._check_mask("mask" if key == WEIGHTS_KEY else key, host[f"mask {key}"])
        call.checks.raise_first(host)
        call.checks.clear()
        self.weights = {key: as_weights(host[f"mask {key}"]) for key in call.masks}
        self.per_row = {key.removeprefix("input "): one for key, one in host.items() if key.startswith("input ")}
        self.others = {key.removeprefix("other "): one for key, one in host.items() if key.startswith("other ")}

    def _is_per_row(self, key: str, level: str) -> bool:
        """Whether an input is one per row, which the host reads."""
        specs = [part.spec for _, part in self.call.loss.parts]
        return level == "row" or any(one.name == key and one.per == "datum" for spec in specs for one in spec.inputs)

    def _check_mask(self, name: str, mask: Tensor) -> None:
        """Whole numbers are 0 or 1, as in a mask; floats are weights, and finite."""
        wrong = ~torch.isfinite(mask) if mask.is_floating_point() else (mask != 0) & (mask != 1)
        if not bool(wrong.any()):
            return
        what = f"{self.call.loss.name}: {self._mask_at(name, mask, wrong)}"
        if mask.is_floating_point():
            raise NonFiniteLossInput(what)
        raise WeightsError(
            f"{what}: a mask of integers is 0 or 1. Real weights are floats; the numbers of packed sequences go into cu_seqlens"
        )

    def _check_not_negative(self, part: Part, weights: Tensor) -> None:
        """A mean is not divided by negative weights."""
        if part.reduction != "sum" and bool((wrong := weights < 0).any()):
            raise WeightsError(
                f"{part.name}: {self._mask_at(mask_name(part), weights, wrong)}, and reduction {part.reduction!r} cannot divide by negative "
                "weights. Reduction 'sum' takes any real weights"
            )

    def _mask_at(self, name: str, mask: Tensor, wrong: Tensor) -> str:
        at = wrong.nonzero()[0].tolist()
        row, position = self.call.where(at[0])
        return f"{name} of {self.call.layout.row} {row} is {float(mask[tuple(at)]):g} at position {position}"

    def _check_rows(self, part: Part, active: np.ndarray) -> None:
        """Numbers per row are finite where the row counts, and flags 0 or 1, ids integers, log-probabilities at most 0."""
        for one in part.spec.inputs:
            if (given := self.per_row.get(one.name)) is not None:
                _check_row_values(part.name, self.call.layout.row, one, given.numpy(), active)

    def _input(self, part: Part, wanted: Input, chosen: Chosen) -> Tensor | None:
        """An input at the active positions, or of the active rows."""
        if wanted.name not in self.call.inputs:
            return None
        values = self.per_row.get(wanted.name)
        if wanted.per == "datum":
            assert values is not None
            return values[chosen.rows]
        if values is not None:
            values = values[chosen.row_of_position]
        else:
            values = self.call.inputs[wanted.name][1]
            values = values[chosen.on(values.device)]
        weights = self.call.weights(part, values.device)[chosen.on(values.device)]
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
        if device not in self._elsewhere:
            self._elsewhere[device] = to_device(self.positions, device)
        return self._elsewhere[device]


CPU = torch.device("cpu")


def _check_row_values(loss: str, row: str, wanted: Input, values: np.ndarray, active: np.ndarray) -> None:
    wrong = ~np.isfinite(values)
    if wanted.is_vector:
        values, wrong = np.where(wrong, values, 0).sum(1), wrong.any(1)
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
