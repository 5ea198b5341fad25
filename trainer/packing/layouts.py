"""Ways to lay several sequences out for one forward, and where each of their tokens then lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..model.model import LoadedModel
from ..routing.routers import routed
from ..transfer import to_device
from . import attention
from .attention import Layout, attending
from .block_attention import BlockAttention
from .flex import FlexAttention
from .layers import states_of
from .micro_batches import SHORTEST_PREFIX
from .rows import pack_row
from .varlen import VarlenAttention

#: How attention runs over a packed row.
AttentionPath = Literal["varlen", "flex", "blocks"]
LAYOUTS: dict[AttentionPath, type[Layout]] = {
    "varlen": VarlenAttention,
    "flex": FlexAttention,
    "blocks": BlockAttention,
}


@dataclass(frozen=True)
class Laid:
    """Sequences laid out for one forward, still on the host.

    inputs     arrays that the backbone takes, by argument
    positions  [tokens of all sequences] int64: where each token lies in the flattened rows; None where they fill them
    layout     of attention over a packed row; None where attention is the model's own
    routes     [rows x columns, layers, k] int32: to which experts tokens are sent, -1 as the model chooses; None for no others
    """

    inputs: dict[str, np.ndarray]
    positions: np.ndarray | None = field(default=None, repr=False)
    layout: Layout | None = None
    routes: np.ndarray | None = field(default=None, repr=False)

    def sending(self, routes: Sequence[np.ndarray]) -> Laid:
        """The same, tokens sent to the experts `routes`: of each sequence, [length, layers, k]."""
        flat = np.concatenate(routes)
        if self.positions is None:
            return replace(self, routes=flat)
        rows = np.full((self.inputs["input_ids"].size, *flat.shape[1:]), -1, dtype=flat.dtype)
        rows[self.positions] = flat
        return replace(self, routes=rows)

    def run(
        self,
        model: LoadedModel,
        rows: Tensor | None = None,
        beside: dict[str, Tensor] | None = None,
        layers: Sequence[int] = (),
    ) -> Tensor:
        """Last hidden states [tokens, d], sequence after sequence, or only `rows` of those; rows is on the host.

        layers: beside each, those of these layers: [tokens, (1 + L) d]. All goes to the device in one copy, with the tensors of `beside`, which are replaced by those there.
        """
        beside = {} if beside is None else beside
        own = {} if self.layout is None else self.layout.arrays
        places = self._places(rows)
        sent = {f"input {name}": torch.from_numpy(array) for name, array in self.inputs.items()}
        sent |= {f"layout {name}": torch.from_numpy(array) for name, array in own.items()}
        sent |= {} if places is None else {"places": places}
        sent |= {} if self.routes is None else {"routes": torch.from_numpy(self.routes)}
        there = to_device(sent | {f"beside {name}": tensor for name, tensor in beside.items()}, model.device)
        beside.update({name: there[f"beside {name}"] for name in beside})
        arguments: dict[str, Any] = {name: there[f"input {name}"] for name in self.inputs}
        if self.layout is not None:
            self.layout.tensors = {name: there[f"layout {name}"] for name in own}
            arguments["packed_layout"] = self.layout
        if model.kind != "encoder":
            arguments["use_cache"] = False
        routes = None if self.routes is None else there["routes"].long()
        with attending(model, None if self.layout is None else attention.NAME), routed(model, routes):
            hidden = states_of(model, arguments, layers)
        flat = hidden.reshape(-1, hidden.shape[-1])
        return flat if places is None else flat[there["places"]]

    def read(self, flat: Tensor) -> Tensor:
        """[rows x columns, d] of the layout to [tokens, d], sequence after sequence."""
        places = self._places(None)
        return flat if places is None else flat[places.to(flat.device)]

    def _places(self, rows: Tensor | None) -> Tensor | None:
        """Where the wanted tokens lie in the flattened rows; None for all of them, as they lie."""
        if self.positions is None:
            return rows
        return torch.from_numpy(self.positions if rows is None else self.positions[rows.numpy()])


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
    inputs = {"input_ids": tokens}
    if model.kind == "encoder":
        inputs["attention_mask"] = mask.astype(np.int64)
    return Laid(inputs, None if mask.all() else np.flatnonzero(mask))


def restarting(model: LoadedModel, sequences: Sequence[np.ndarray]) -> Laid:
    """One row for all; position ids restart at each sequence, from which transformers keeps attention within it."""
    position_ids = np.concatenate([np.arange(len(s)) for s in sequences])
    return Laid({"input_ids": np.concatenate(sequences)[None], "position_ids": position_ids[None]})


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
    inputs = {"input_ids": row.tokens[None], "position_ids": row.position_ids[None]}
    return Laid(inputs, np.concatenate(row.positions), LAYOUTS[path](row.blocks))
