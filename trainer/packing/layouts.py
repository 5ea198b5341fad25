"""Ways to lay several sequences out for one forward, and where each of their tokens then lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model.model import LoadedModel
from . import attention
from .attention import Layout, attending
from .micro_batches import SHORTEST_PREFIX
from .rows import pack_row


@dataclass(frozen=True)
class Laid:
    """Sequences laid out for one forward.

    inputs     the backbone's arguments, on its device
    positions  [tokens of all sequences] int64: where each token lies in the flattened rows; None where they fill them
    blocks     whether attention runs block by block
    """

    inputs: dict[str, Any]
    positions: Tensor | None = field(default=None, repr=False)
    blocks: bool = False

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
        with _attending_blocks(model) if self.blocks else nullcontext():
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


def blocks(model: LoadedModel, sequences: Sequence[np.ndarray]) -> Laid:
    """One row for all, with attention block by block."""
    return _blocks(model, sequences, share=False)


def sharing(model: LoadedModel, sequences: Sequence[np.ndarray], shortest: int = SHORTEST_PREFIX) -> Laid:
    """As `blocks`, with a prefix of `shortest` tokens or more that several sequences begin with laid once."""
    return _blocks(model, sequences, share=True, shortest=shortest)


def _blocks(model: LoadedModel, sequences: Sequence[np.ndarray], *, share: bool, shortest: int = 0) -> Laid:
    row = pack_row(sequences, share=share, shortest=shortest)
    tokens, positions = (torch.from_numpy(x)[None].to(model.device) for x in (row.tokens, row.position_ids))
    layout = Layout(tuple(block.to(model.device) for block in row.blocks))
    inputs = {"input_ids": tokens, "position_ids": positions, "packed_layout": layout}
    return Laid(inputs, torch.from_numpy(np.concatenate(row.positions)), blocks=True)


def _attending_blocks(model: LoadedModel) -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if attention.NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(attention.NAME, attention.block_attention)
    return attending(model.module, attention.NAME)
