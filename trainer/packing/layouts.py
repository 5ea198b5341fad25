"""Ways to lay several sequences out for one forward, and where each of their tokens then lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..model.model import LoadedModel
from ..transfer import to_device
from . import attention
from .attention import Layout, attending
from .block_attention import BlockAttention
from .micro_batches import SHORTEST_PREFIX
from .rows import pack_row
from .varlen import VarlenAttention

#: How attention runs over a packed row.
AttentionPath = Literal["varlen", "blocks"]
LAYOUTS: dict[AttentionPath, type[Layout]] = {"varlen": VarlenAttention, "blocks": BlockAttention}


@dataclass(frozen=True)
class Laid:
    """Sequences laid out for one forward.

    inputs     the backbone's arguments, on its device
    positions  [tokens of all sequences] int64: where each token lies in the flattened rows; None where they fill them
    packed     whether attention follows a layout of its own, `packed_layout` of the inputs
    """

    inputs: dict[str, Any]
    positions: Tensor | None = field(default=None, repr=False)
    packed: bool = False

    def read(self, flat: Tensor, rows: Tensor | None = None) -> Tensor:
        """[rows x columns, d] of the layout to [tokens, d] sequence after sequence, or only `rows` of those."""
        if self.positions is None:
            return flat if rows is None else flat[rows.to(flat.device)]
        return flat[
            (self.positions if rows is None else self.positions[rows.to(self.positions.device)]).to(flat.device)
        ]

    def run(self, model: LoadedModel, rows: Tensor | None = None) -> Tensor:
        """Last hidden states [tokens, d], sequence after sequence, or only `rows` of those."""
        options = {} if model.kind == "encoder" else {"use_cache": False}
        with attending(model, attention.NAME if self.packed else None):
            hidden = model.backbone(**self.inputs, **options).last_hidden_state
        return self.read(hidden.reshape(-1, hidden.shape[-1]), rows)


#: Lays sequences [length] int64 out for a model.
Way = Callable[[LoadedModel, Sequence[np.ndarray]], Laid]


def padded(model: LoadedModel, sequences: Sequence[np.ndarray]) -> Laid:
    """One row per sequence, padded on the right.

    A decoder needs no mask for that, since no token looks ahead; an encoder gets one.
    """
    longest = max(len(s) for s in sequences)
    tokens = np.zeros((len(sequences), longest), dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=bool)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = True
    inputs = {"input_ids": torch.from_numpy(tokens).to(model.device)}
    if model.kind == "encoder":
        inputs["attention_mask"] = torch.from_numpy(mask).to(model.device).long()
    return Laid(inputs, None if mask.all() else torch.from_numpy(np.flatnonzero(mask)))


def restarting(model: LoadedModel, sequences: Sequence[np.ndarray]) -> Laid:
    """One row for all; position ids restart at each sequence, from which transformers keeps attention within it."""
    tokens = torch.from_numpy(np.concatenate(sequences)).unsqueeze(0).to(model.device)
    position_ids = torch.cat([torch.arange(len(s), device="cpu") for s in sequences]).unsqueeze(0).to(model.device)
    return Laid({"input_ids": tokens, "position_ids": position_ids})


def blocks(model: LoadedModel, sequences: Sequence[np.ndarray], path: AttentionPath = "blocks") -> Laid:
    """One row for all, in which each sequence sees itself; `path`: how attention runs over it."""
    return _packed(model, sequences, path, share=False)


def sharing(
    model: LoadedModel, sequences: Sequence[np.ndarray], path: AttentionPath = "blocks", shortest: int = SHORTEST_PREFIX
) -> Laid:
    """As `blocks`, with a prefix of `shortest` tokens or more that several sequences begin with laid once."""
    return _packed(model, sequences, path, share=True, shortest=shortest)


def _packed(
    model: LoadedModel, sequences: Sequence[np.ndarray], path: AttentionPath, *, share: bool, shortest: int = 0
) -> Laid:
    row = pack_row(sequences, share=share, shortest=shortest)
    layout = LAYOUTS[path](row.blocks)
    arrays = {"input_ids": row.tokens[None], "position_ids": row.position_ids[None]} | layout.arrays
    there = to_device({name: torch.from_numpy(array) for name, array in arrays.items()}, model.device)
    inputs: dict[str, Any] = {name: there.pop(name) for name in ("input_ids", "position_ids")}
    layout.tensors, inputs["packed_layout"] = there, layout
    return Laid(inputs, torch.from_numpy(np.concatenate(row.positions)), packed=True)
