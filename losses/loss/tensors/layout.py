"""How a call's tensors lie in rows: padded [B, T], or packed [P] with the boundaries of its sequences.

A row is what a datum is elsewhere. Positions are counted row after row, so that all tensors are flat from here on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ....datums.errors import DtypeError, LossContractError, MissingInput, ShapeError
from ...spec.top import TOP_OUTPUTS
from ...spec.vocabulary import STUDENT, TOKEN_EMBEDDINGS

#: Tensors with one number (or K, or D) per position that may say what the shape of all is.
LEADS = (
    *("logprobs", "entropy", "logsumexp", "mean_logprobs", "values", "labels", "mask"),
    *(*TOP_OUTPUTS, STUDENT, TOKEN_EMBEDDINGS),
)


@dataclass(frozen=True)
class Layout:
    """The shape that one number per position has, (B, T) or (P,), and how many rows there are.

    lead: the tensor that says so. cu_seqlens: [rows + 1], where packed sequences begin and end; None for padded rows, and for
    packed positions that nothing couples. A loss that reads no positions has the shape ().
    """

    lead: str
    shape: tuple[int, ...]
    rows: int
    cu_seqlens: Tensor | None = None

    @property
    def positions(self) -> int:
        """How many positions there are in all rows."""
        return math.prod(self.shape) if self.shape else 0

    @property
    def is_packed(self) -> bool:
        """Whether rows lie one after the other, without padding."""
        return len(self.shape) == 1

    @property
    def row(self) -> str:
        """The word for a row."""
        return "sequence" if self.is_packed else "row"

    def flat(self, name: str, tensor: Tensor) -> Tensor | None:
        """[positions, ...] of a tensor with numbers per position, [B, T, ...], [P, ...] or [1, P, ...]; None of any other."""
        if self.is_packed and tuple(tensor.shape[:2]) == (1, *self.shape):
            return tensor[0]
        if not self.shape or tuple(tensor.shape[: len(self.shape)]) != self.shape:
            return None
        return tensor.flatten(0, len(self.shape) - 1)

    def per_row(self, tensor: Tensor) -> Tensor | None:
        """[rows] of a tensor with one number per row, [B] or [B, 1], or one for all; None of any other."""
        if tensor.ndim == 0:
            return tensor.expand(self.rows)
        return tensor.reshape(-1) if tuple(tensor.shape) in ((self.rows,), (self.rows, 1)) else None

    def lengths(self, cu_seqlens: np.ndarray | None) -> np.ndarray:
        """[rows] int64: how many positions each row has. cu_seqlens: its numbers, on the host."""
        if cu_seqlens is None or not self.shape:
            return np.full(self.rows, self.positions // max(self.rows, 1), dtype=np.int64)
        ends = cu_seqlens.astype(np.int64)
        self._check_ends(ends)
        return np.diff(ends)

    def _check_ends(self, ends: np.ndarray) -> None:
        if ends[0] != 0:
            raise ShapeError(
                f"cu_seqlens begins with {ends[0]}: it holds where each sequence begins, first 0, then all ends"
            )
        if (falls := np.flatnonzero(np.diff(ends) < 0)).size:
            i = int(falls[0])
            raise ShapeError(f"cu_seqlens falls from {ends[i]} to {ends[i + 1]} at sequence {i}: it never decreases")
        if ends[-1] != self.positions:
            raise ShapeError(
                f"cu_seqlens ends at {ends[-1]}, but {self.lead} has {self.positions} positions: packed tensors are [P] or [1, P], "
                "all sequences one after the other, and padded ones take no cu_seqlens"
            )
        if self.rows == self.positions and (np.diff(ends) != 1).any():
            raise ShapeError(
                f"cu_seqlens has as many sequences as there are positions, {self.rows}, some of them empty, so one number per "
                "sequence cannot be told from one per position: leave empty sequences out"
            )


def as_tensor(name: str, value: Any) -> Tensor:
    """A tensor, array, list or number as a tensor of real numbers. Raises DtypeError."""
    try:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
        if tensor.is_floating_point() and not hasattr(value, "dtype"):  # lists, whatever the script's default dtype is
            tensor = torch.as_tensor(value, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise DtypeError(f"{name} must be a tensor or numbers, not {value!r:.60}") from None
    if tensor.is_complex() or tensor.is_quantized or tensor.layout != torch.strided:
        kind = tensor.dtype if tensor.layout == torch.strided else f"of layout {tensor.layout}"
        raise DtypeError(f"{name} is {kind}: a loss reads dense tensors of real numbers")
    return tensor


def layout_of(
    name: str,
    tensors: Mapping[str, Tensor],
    cu_seqlens: Any,
    couples: str,
    *,
    per_row: Mapping[str, Tensor],
    masks: Sequence[str] = (),
) -> Layout:
    """The layout that these tensors have.

    name, couples: of the loss, for messages. per_row: tensors with one entry per row, such as embeddings [N, D], for losses
    that read no positions. masks: further names of masks.

    Raises ShapeError for shapes that are none of these, LossContractError for packed positions without boundaries that the
    loss needs, MissingInput where no tensor says how many rows there are.
    """
    ends = None if cu_seqlens is None else _boundaries(cu_seqlens)
    leads = [key for key in LEADS if key in tensors] + [key for key in tensors if key in masks]
    if ends is not None:  # [1, K] may be one position or K of them; a mask [1] says that it is one
        leads.sort(key=lambda key: tensors[key].ndim > 1)
    lead = leads[0] if leads else None
    if lead is None:
        return _of_rows(name, per_row, ends)
    given, trailing = tensors[lead], lead in ("logprobs", "labels", "mask", *masks)
    shape = tuple(given.shape)
    if ends is not None:
        inner = shape[1:] if len(shape) > 1 and shape[0] == 1 else shape
        if len(inner) != 1 and not (trailing and len(inner) == 2):
            raise ShapeError(
                f"{lead} is {list(shape)} beside cu_seqlens: packed tensors are [P] or [1, P], all positions in one row. "
                "For padded rows leave cu_seqlens out"
            )
        return Layout(lead, inner[:1], len(ends) - 1, ends)
    if len(shape) == 1:
        if couples != "token":
            raise LossContractError(
                f"{name} couples the positions of a {couples}, and {lead} is packed, {list(shape)}: give cu_seqlens, where "
                "each sequence begins and ends"
            )
        return Layout(lead, shape, 1)
    if len(shape) != 2 and not (trailing and len(shape) == 3):
        raise ShapeError(f"{lead} is {list(shape)}: it must be padded [B, T], or packed [P] with cu_seqlens")
    return Layout(lead, shape[:2], shape[0])


def _of_rows(name: str, per_row: Mapping[str, Tensor], ends: Tensor | None) -> Layout:
    for key, tensor in per_row.items():
        if tensor.ndim:
            return Layout(key, (), len(tensor))
    if ends is not None:
        return Layout("cu_seqlens", (), len(ends) - 1)
    raise MissingInput(
        f"{name}: no tensor says how many rows there are: give the mask, or one vector or number per row"
    )


def _boundaries(value: Any) -> Tensor:
    ends = as_tensor("cu_seqlens", value)
    if ends.is_floating_point() or ends.dtype == torch.bool:
        raise DtypeError(f"cu_seqlens is {ends.dtype}: it holds integers, where each sequence begins and ends")
    if ends.ndim != 1 or not len(ends):
        raise ShapeError(f"cu_seqlens is {list(ends.shape)}: of S sequences it holds S + 1 numbers, [0, ..., P]")
    return ends


def vectors(layout: Layout, loss: str, key: str, tensor: Tensor) -> Tensor:
    """[rows, D] floats of an input with one vector per row. Raises ShapeError for any other shape."""
    if tensor.ndim != 2 or len(tensor) != layout.rows:
        raise ShapeError(f"{loss}: {key} is {list(tensor.shape)}: one vector per {layout.row}, [{layout.rows}, D]")
    return tensor if tensor.is_floating_point() else tensor.float()


Level = Literal["position", "row"]


def leveled(layout: Layout, loss: str, key: str, tensor: Tensor) -> tuple[Level, Tensor]:
    """Whether an input holds numbers per position or per row, and they in order, [positions, ...] or [rows].

    Raises ShapeError naming the shapes that it may have.
    """
    if (flat := layout.flat(key, tensor)) is not None:
        return "position", flat
    if (rows := layout.per_row(tensor)) is not None:
        if tensor.ndim and layout.is_packed and layout.cu_seqlens is None:
            raise ShapeError(
                f"{loss}: {key} is {list(tensor.shape)}, one per sequence: give cu_seqlens, which says where they begin"
            )
        return "row", rows
    positions = f"one number per position, {list(layout.shape)}, or " if layout.shape else ""
    raise ShapeError(
        f"{loss}: {key} is {list(tensor.shape)}, but by {layout.lead} it is {positions}one per {layout.row}, [{layout.rows}]"
    )
