"""The distributions of a model with another vocabulary, in the numbers of a student's tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .whole import HeadDistributions, WholeTile, rows_in_tile


@dataclass(frozen=True, eq=False)
class RenumberedDistributions(HeadDistributions):
    """Those of hidden states and a head, in another order of tokens, for reading alone.

    order: [W] int64 on their device, as `datums.builders.vocabularies.renumbering` gives it: which row of the head is at each
    place; -1 for none, which has probability 0.
    """

    order: Tensor

    @property
    def vocabulary(self) -> int:
        """How many places there are."""
        return len(self.order)

    @property
    def tile_rows(self) -> int:
        """How many positions fit into a tile."""
        return rows_in_tile(self.hidden.device, max(len(self.order), len(self.head.weight)))

    def tile(self, part: slice) -> WholeTile:
        """log softmax at a few positions, renumbered."""
        tile = HeadDistributions(self.hidden, self.head).tile(part)
        logprobs = tile.logprobs[:, self.order.clamp(min=0)]
        return WholeTile(part, logprobs.masked_fill_(self.order < 0, -torch.inf), tile.logsumexp)
