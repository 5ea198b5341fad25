"""What a loss was given as tensors: sorted into model outputs, inputs and mask, their shapes checked, and flat.

Nothing here reads a number, so nothing waits for a device.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....datums.errors import (
    DtypeError,
    LossContractError,
    MissingInput,
    ShapeError,
    UnknownInput,
)
from ....datums.inputs import IGNORE_LABEL, KEY_DTYPES
from ...batch.checks import has_one_column, reads_one_target
from ...spec.layers import DATUM_OUTPUTS, LAYER_EMBEDDINGS
from ...spec.settings import WEIGHTS_KEY
from ...spec.spec import OUTPUT_NAMES, LossSpec
from ...spec.top import TOP_OUTPUTS, TOP_TOKENS
from ...spec.vocabulary import VOCABULARY_OUTPUTS, WIDE_OUTPUTS
from .host import Checks, to_device
from .layout import Layout, Level, as_tensor, layout_of, leveled, vectors
from .names import Part, Whole, check_names, mask_keys, mask_name


@dataclass
class Call:
    """One call's tensors: outputs [positions] or [positions, K], embeddings [rows, D], inputs per position or per row.

    masks: [positions] or [positions, K] by the key of the weights that they are, each in its own dtype. width: K of [positions, K] targets; None of [positions].
    labels: flat, where they were given. checks: what is still to be asked about the numbers. lengths: [rows], once it was read.
    """

    loss: Whole
    layout: Layout
    outputs: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, tuple[Level, Tensor]] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    width: int | None = None
    checks: Checks = field(default_factory=Checks)
    lengths: np.ndarray | None = None

    def mask_shape(self, spec: LossSpec) -> tuple[int, ...]:
        """The shape of a loss's weights: one per target; one per position in a loss over candidates."""
        width = None if spec.candidates else self.width
        return (self.layout.positions,) if width is None else (self.layout.positions, width)

    def flat(self, name: str, tensor: Tensor, labels: Any) -> Tensor:
        """[positions, n] of logits [..., V] or hidden states [..., d] beside labels. Raises ShapeError, DtypeError."""
        tensor = as_tensor(f"{self.loss.name}: {name}", tensor)
        flat = self.layout.flat(name, tensor)
        if flat is None or flat.ndim != 2:
            shape = list(as_tensor("labels", labels).shape)
            shifted = tensor.ndim == 3 and tensor.shape[1] == self.layout.shape[-1] + 1
            raise ShapeError(
                f"{self.loss.name}: {name} is {list(tensor.shape)} beside labels {shape}: one row of it per label"
                + (f". Position t predicts labels[:, t]: give {name}[:, :-1] with labels[:, 1:]" if shifted else "")
            )
        return flat

    def mask(self, part: Part) -> Tensor | None:
        """The mask that a loss reads: under its key."""
        return self.masks.get(part.weights or WEIGHTS_KEY)

    def weights(self, part: Part, device: torch.device) -> Tensor:
        """[positions] or [positions, K] float weights on a device; ones without a mask."""
        if (mask := self.mask(part)) is None:
            return torch.ones(self.mask_shape(part.spec), dtype=torch.float32, device=device)
        return as_weights(to_device(mask, device))

    def shape(self, flat: Tensor | tuple[int, ...]) -> list[int]:
        """The shape, for messages, of numbers per position as they are given: [B, T] of [positions], [B, T, K] of [positions, K]."""
        return [*self.layout.shape, *(flat.shape if isinstance(flat, Tensor) else flat)[1:]]

    def where(self, flat: int) -> tuple[int, int]:
        """Which (row, position) the `flat`-th position is."""
        assert self.lengths is not None
        ends = np.cumsum(self.lengths)
        row = int(np.searchsorted(ends, flat, side="right"))
        return row, flat - int(ends[row] - self.lengths[row])


def as_weights(mask: Tensor) -> Tensor:
    """A mask as float weights: float64 stays, anything else is float32."""
    return mask if mask.dtype in (torch.float32, torch.float64) else mask.float()


def call_of(
    loss: Whole,
    given: Mapping[str, Any],
    *,
    mask: Any = None,
    labels: Any = None,
    cu_seqlens: Any = None,
    computed: Collection[str] = (),
    counts_only: bool = False,
) -> Call:
    """Sort the arguments of a call. computed: outputs computed from logits or hidden states. counts_only: outputs may
    be missing.

    Raises UnknownInput, MissingInput, ShapeError, DtypeError, LossContractError.
    """
    tensors = {key: as_tensor(f"{loss.name}: {key}", value) for key, value in given.items() if value is not None}
    check_names(loss, tensors, computed, counts_only)
    named = mask_keys(loss)
    masks = {"labels": labels, "mask": mask, **{key: tensors.get(key) for key in named}}
    masks = {key: as_tensor(f"{loss.name}: {key}", one) for key, one in masks.items() if one is not None}
    reads_tokens = any(part.spec.reads_tokens for _, part in loss.parts)
    if masks and not reads_tokens:
        raise UnknownInput(
            f"{loss.name} reads one vector per row and no positions, so it takes no {' and no '.join(masks)}"
        )
    per_row = {key: tensors[key] for key in DATUM_OUTPUTS if key in tensors} or tensors
    outputs = {key: _lead(key, one) for key, one in tensors.items() if key in OUTPUT_NAMES}
    leads = {**outputs, **masks} if reads_tokens else {}
    call = Call(loss, layout_of(loss.name, leads, cu_seqlens, loss.couples, per_row=per_row, masks=named))
    inputs = [one for _, part in loss.parts for one in part.spec.inputs]
    takes_any = any(part.spec.is_batch_style for _, part in loss.parts)
    for key, tensor in tensors.items():
        if key in OUTPUT_NAMES:
            call.outputs[key] = _output(call, key, tensor)
        elif any(one.name == key and one.is_vector for one in inputs):
            call.inputs[key] = "row", vectors(call.layout, loss.name, key, _data(loss.name, key, tensor))
        elif takes_any or any(one.name == key for one in inputs):
            call.inputs[key] = leveled(call.layout, loss.name, key, _data(loss.name, key, tensor))
    call.labels = _flat(call, "labels", masks["labels"]) if "labels" in masks else None
    call.masks = _masks(call, masks, named)
    call.width = next((one.shape[1] for one in _wide(call) if one is not None and one.ndim == 2), None)
    for _, part in loss.parts:
        _check_part(call, part)
    return call


def _lead(key: str, tensor: Tensor) -> Tensor:
    """An output as far as it says which positions there are."""
    return tensor[..., 0] if key in (*TOP_OUTPUTS, *WIDE_OUTPUTS) and tensor.ndim and tensor.shape[-1] else tensor


def _wide(call: Call) -> Iterator[Tensor | None]:
    """What may have one number for each of K targets, whatever says so first."""
    yield call.outputs.get("logprobs")
    yield call.labels
    if "logprobs" not in call.outputs and call.labels is None:
        names = [part.spec.candidates for _, part in call.loss.parts]
        yield from (call.inputs[name][1] for name in names if name in call.inputs)
        yield from call.masks.values()


def _flat(call: Call, key: str, tensor: Tensor) -> Tensor:
    layout = call.layout
    flat = layout.flat(key, tensor)
    if flat is None or flat.ndim > 2:
        raise ShapeError(
            f"{call.loss.name}: {key} is {list(tensor.shape)}, but {layout.lead} has the positions {list(layout.shape)}"
        )
    return flat


def _output(call: Call, key: str, tensor: Tensor) -> Tensor:
    name = call.loss.name
    if tensor.is_floating_point() == (key == TOP_TOKENS):
        kind = "token ids are integers" if key == TOP_TOKENS else "a model's outputs are floats"
        raise DtypeError(f"{name}: {key} is {tensor.dtype}: {kind}")
    if key in DATUM_OUTPUTS:
        layers = next((part.layers for _, part in call.loss.parts if part.layers), ())
        middle, what = (
            ([len(layers)], "one vector per row and layer") if key == LAYER_EMBEDDINGS else ([], "one vector per row")
        )
        wanted = [call.layout.rows, *middle]
        if tensor.ndim != len(wanted) + 1 or list(tensor.shape[:-1]) != wanted:
            shown = ", ".join([*map(str, wanted), "D"])
            raise ShapeError(f"{name}: {key} is {list(tensor.shape)}: {what}, [{shown}]")
        return tensor
    flat = _flat(call, key, tensor)
    if key in (*TOP_OUTPUTS, *WIDE_OUTPUTS):
        if flat.ndim != 2:
            last, what = "D", "vector per position"
            if key in VOCABULARY_OUTPUTS:
                last, what = "V", "number per token of the vocabulary"
            elif key in TOP_OUTPUTS:
                last, what = "k", "number per likeliest token"
            shown = ", ".join([*map(str, call.layout.shape), last])
            raise ShapeError(f"{name}: {key} is {list(tensor.shape)}: one {what}, [{shown}]")
        return flat
    if flat.ndim == 2 and key != "logprobs":
        raise ShapeError(f"{name}: {key} is {list(tensor.shape)}: one number per position, {list(call.layout.shape)}")
    return flat


def _data(name: str, key: str, tensor: Tensor) -> Tensor:
    """An input in the dtype in which a datum would carry it, but for floats, which keep theirs."""
    if tensor.requires_grad:
        raise LossContractError(
            f"{name}: {key} requires a gradient, but it is data, and gradients go to the model's outputs only: give "
            f"{key}.detach()"
        )
    if tensor.is_floating_point():
        return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    return tensor.float() if KEY_DTYPES.get(key) == "float32" else tensor.long()


def _masks(call: Call, given: Mapping[str, Tensor], named: Sequence[str]) -> dict[str, Tensor]:
    """The weights by their keys. named: keys other than the usual one, whose tensor is `mask`."""
    names = {key: key for key in named}
    if any(part.weights not in named for _, part in call.loss.parts):
        names[WEIGHTS_KEY] = "mask"
    elif "mask" in given:
        raise UnknownInput(f"{call.loss.name} reads no mask: it takes its weights from {', '.join(map(repr, named))}")
    masks = {key: _mask(call, key, name, given.get(name)) for key, name in names.items()}
    return {key: mask for key, mask in masks.items() if mask is not None}


def _mask(call: Call, key: str, name: str, mask: Tensor | None) -> Tensor | None:
    """The weights under a key: the mask's, whose tensor is `name`, and 0 where a label is to be ignored."""
    flat = None if mask is None else _flat(call, name, mask.detach())
    if call.labels is None:
        return flat
    if call.labels.is_floating_point() or call.labels.dtype == torch.bool:
        raise DtypeError(f"{call.loss.name}: labels is {call.labels.dtype}: they are token ids, integers")
    kept = call.labels != IGNORE_LABEL
    own = [part.spec for _, part in call.loss.parts if (part.weights or WEIGHTS_KEY) == key]
    if kept.ndim == 2 and any(spec.candidates for spec in own):  # which are weighed per position
        kept = kept.any(1)
    if flat is None:
        return kept
    if flat.shape != kept.shape:
        raise ShapeError(f"{call.loss.name}: {name} is {call.shape(flat)}, but labels is {call.shape(call.labels)}")
    kept = kept.to(flat.device)
    return flat & kept if flat.dtype == torch.bool else torch.where(kept, flat, torch.zeros_like(flat))


def _check_part(call: Call, part: Part) -> None:
    """The shapes of logprobs and mask are those that this loss reads."""
    spec, layout = part.spec, call.layout
    if not spec.reads_tokens:
        return
    shown = list(layout.shape)
    if spec.candidates and call.width is None and ("logprobs" in call.outputs or call.labels is not None):
        wanted = ", ".join([*map(str, shown), "K"])
        raise ShapeError(
            f"{part.name} compares K candidate tokens per position, so {layout.lead} is [{wanted}], not {shown}"
        )
    if call.width is not None and reads_one_target(spec):
        raise ShapeError(
            f"{part.name} reads one token per position, but {layout.lead} has {call.width} per position: it must be {shown}"
        )
    for key, (level, values) in call.inputs.items():
        if not any(one.name == key for one in spec.inputs):
            continue
        _check_input(call, part, key, level, values)
    if (mask := call.mask(part)) is None:
        _check_may_lack_mask(call, part)
    elif tuple(mask.shape) != call.mask_shape(spec):
        wanted = call.shape(call.mask_shape(spec))
        raise ShapeError(f"{part.name}: {mask_name(part)} is {call.shape(mask)}, but it must be {wanted}")


def _check_input(call: Call, part: Part, key: str, level: Level, values: Tensor) -> None:
    spec, layout = part.spec, call.layout
    wanted = next(one for one in spec.inputs if one.name == key)
    if wanted.per == "datum" and layout.shape and level == "position" and layout.rows != layout.positions:
        raise ShapeError(f"{part.name} reads one {key!r} per {layout.row}, [{layout.rows}], not one per position")
    if key == spec.candidates and (level, values.ndim, values.shape[-1]) != ("position", 2, call.width):
        raise ShapeError(
            f"{part.name}: {key} must hold one number for each of the {call.width} candidates of a position, "
            f"{[*layout.shape, call.width]}"
        )
    if call.width is None and values.ndim > 1 and has_one_column(wanted, spec):
        raise ShapeError(f"{part.name}: {key} must be one number per position, {list(layout.shape)}")


def _check_may_lack_mask(call: Call, part: Part) -> None:
    if not call.layout.is_packed:
        raise MissingInput(
            f"{part.name} reads 'mask', which was not given: {list(call.layout.shape)}, 1 where a position counts, 0 at prompts "
            "and padding, or real weights. All ones if every position counts"
        )
    if part.reduction != "sum":
        raise MissingInput(
            f"{part.name} with reduction {part.reduction!r} divides by the mask, which was not given: "
            f"{list(call.layout.shape)}, ones if every position counts"
        )
