"""`StaticRows`: prompts and their continuations as `Continuations` has them, in buffers of fixed size."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...model.lengths import switch_length
from ...model.model import LoadedModel
from ...packing.attention import attending
from ..blocks import BLOCK
from .cache import NAME, Shape
from .masks import CURRENT
from .states import States

#: Prompts are padded to multiples of this, so that batches with prompts of about one length have buffers of one shape.
WIDTH_UNIT = 32
#: Rooms are multiples of this, as long as they are smaller than FIRST_ROOM: masks of other widths would be copied on CUDA.
ROOM_UNIT = 16
#: Tokens that each sample has room for at first; the room is doubled when used up, from MOST_ADDED on raised by that.
FIRST_ROOM, MOST_ADDED = 64, 512
#: A prompt of so many tokens lies in the buffer once for up to MOST_SLOTS of its samples. A shorter one is copied for each:
#: sharing costs two small copies per layer, and each sample's queries meet the keys of all, to be hidden by the mask.
SHARED_FROM, MOST_SLOTS = 256, 8


class StaticRows:
    """`num_samples` rows per prompt, in the prompts' order, all extended token by token.

    Prompts of different lengths are padded on the left and masked. `read` comes first. Then either `extend`, or `begin` for a
    block and, for each of its steps, `forward` and the state's `advance`.

    limit  tokens that any row gets at most
    slots  samples that share a copy of their prompt; None: as many as is good for its length
    """

    def __init__(
        self,
        model: LoadedModel,
        prompts: Sequence[list[int]],
        num_samples: int,
        limit: int,
        *,
        slots: int | None = None,
        states: States | None = None,
    ) -> None:
        self.model, self.prompts, self.limit = model, prompts, limit
        self.states = States(model.device, model.max_length) if states is None else states
        if "position_ids" not in inspect.signature(model.backbone.forward).parameters:
            raise NotImplementedError("a model that is not told positions")
        if switch_length(model) is not None:
            raise NotImplementedError("rows rotate in another way beyond a length, and have to be read anew there")
        longest = max(map(len, prompts))
        self.slots = slots or (_divisor(num_samples, MOST_SLOTS) if longest >= SHARED_FROM else 1)
        self.copies = num_samples // self.slots
        width = -(-longest // WIDTH_UNIT) * WIDTH_UNIT
        room = min(FIRST_ROOM, -(-limit // ROOM_UNIT) * ROOM_UNIT)
        shape = Shape(len(prompts) * self.copies, self.slots, width, room)
        self.state = self.states.of(shape)

    def read(self) -> Tensor:
        """The last hidden states [rows, d] of the prompts, each read once for its rows."""
        device, width, state = self.model.device, max(map(len, self.prompts)), self.state
        padded = torch.tensor([[0] * (width - len(p)) + p for p in self.prompts], device=device)
        lengths = torch.tensor([len(p) for p in self.prompts], device=device)
        columns = torch.arange(width, device=device)
        starts = width - lengths[:, None]
        mask = {"attention_mask": (columns >= starts).long()} if len(set(map(len, self.prompts))) > 1 else {}
        owners = torch.arange(len(self.prompts), device=device).repeat_interleave(self.copies)
        state.cache.owners = owners
        with attending(self.model):
            output = self.model.backbone(
                input_ids=padded,
                position_ids=(columns - starts).clamp(min=0),
                past_key_values=state.cache,
                use_cache=True,
                **mask,
            )
        state.cache.owners = None
        state.lengths.copy_(lengths[owners])
        return output.last_hidden_state[:, -1].repeat_interleave(self.copies * self.slots, 0)

    def begin(self, steps: int) -> None:
        """Make ready for so many steps, at most BLOCK: room, positions and masks for all of them."""
        assert steps <= BLOCK
        while self.state.used + steps > self.state.shape.room:
            shape = self.state.shape
            larger = replace(shape, room=shape.room + min(shape.room, MOST_ADDED))
            self.state = self.state.moved_to(self.states.of(larger))
        self.state.begin()

    def forward(self) -> Tensor:
        """Hidden states [rows, d] after the state's newest token of each row; the state is not advanced."""
        state = self.state
        positions = state.start_forward()
        token = CURRENT.set(state)
        try:
            with attending(self.model, NAME):
                output = self.model.backbone(
                    input_ids=state.token[:, None], position_ids=positions, past_key_values=state.cache, use_cache=True
                )
        finally:
            CURRENT.reset(token)
        return output.last_hidden_state[:, -1]

    def extend(self, tokens: Tensor) -> Tensor:
        """Hidden states [rows, d] after one more token [rows] each: a block of one step."""
        self.begin(1)
        self.state.token.copy_(tokens)
        hidden = self.forward()
        self.state.advance()
        return hidden

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop rows, but none of these, which are in ascending order; returns the rows that are left: whole copies."""
        copies = sorted({row // self.slots for row in rows})
        left = [copy * self.slots + slot for copy in copies for slot in range(self.slots)]
        if len(copies) < self.state.shape.copies:
            fewer = self.states.of(replace(self.state.shape, copies=len(copies)))
            self.state = self.state.moved_to(fewer, torch.tensor(copies, device=self.model.device))
        return left


def _divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most `most`."""
    return next(size for size in range(min(number, most), 0, -1) if number % size == 0)
