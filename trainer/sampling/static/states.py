"""`States`: the buffers of a call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # these import transformers
    from .cache import Shape
    from .state import State


class States:
    """The states of a call, by shape. A later batch of the same shape has the buffers and the recording of an earlier one.

    limit  of positions, that is the longest sequence of the model
    """

    def __init__(self, device: torch.device, limit: int | None) -> None:
        self.device, self.limit = device, limit
        self.kept: dict[Shape, State] = {}

    def of(self, shape: Shape) -> State:
        """A state to fill. Those of another width are dropped: prompts come sorted by length, so theirs do not come again."""
        from .state import State

        if any(other.width != shape.width for other in self.kept):
            self.kept.clear()
        if shape not in self.kept:
            self.kept[shape] = State(shape, self.device, self.limit)
        self.kept[shape].used = 0
        return self.kept[shape]
