"""Everything that a step of decoding reads and writes, at fixed addresses, so that a recorded step can be replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..blocks import BLOCK
from ..choice import wide_dtype
from .cache import Shape, StaticCache
from .masks import MaskFunction, additive_masks


class State:
    """The buffers of one shape. Tables have a row for each step of a block; `at` gives the row of the step that runs.

    lengths    [copies] tokens of each copy's prompt
    used       tokens that each sample has in the buffers
    step       the step of the block that is next; `clock` is the same on the device, for recorded steps
    token      [rows] the newest token of each sample
    positions  [BLOCK, rows, 1] of that token in its sample
    written    [BLOCK, slots] columns of the keys of that token
    uniforms   [BLOCK, rows] at which distributions are inverted
    tokens, logprobs  [BLOCK, rows] what was chosen
    """

    def __init__(self, shape: Shape, device: torch.device, limit: int | None) -> None:
        wide = wide_dtype(device)
        self.shape, self.device, self.limit = shape, device, limit
        self.cache = StaticCache(shape)
        self.used = 0
        self.lengths = torch.zeros(shape.copies, dtype=torch.int64, device=device)
        self.token = torch.zeros(shape.rows, dtype=torch.int64, device=device)
        self.positions = torch.zeros(BLOCK, shape.rows, 1, dtype=torch.int64, device=device)
        self.written = torch.zeros(BLOCK, shape.slots, dtype=torch.int64, device=device)
        self.uniforms = torch.zeros(BLOCK, shape.rows, dtype=wide, device=device)
        self.tokens = torch.zeros(BLOCK, shape.rows, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(BLOCK, shape.rows, dtype=wide, device=device)
        self.steps = torch.arange(BLOCK, device=device)
        self.masks: list[tuple[MaskFunction, Tensor]] = []
        self.asked = 0
        self.step = 0
        self.clock = torch.zeros(1, dtype=torch.int64, device=device)
        self.clock_behind = False
        self.recording = False
        self.replay: Callable[[], None] | None = None

    def begin(self) -> None:
        """Fill the tables for the next BLOCK steps; the first of them reads `token`."""
        shape, own = self.shape, self.used + self.steps
        at = self.lengths + own[:, None]  # [BLOCK, copies]
        positions = at if self.limit is None else at.clamp(max=self.limit - 1)  # of samples that have ended
        self.positions.copy_(positions.repeat_interleave(shape.slots, 1)[:, :, None])
        slots = torch.arange(shape.slots, device=self.device)
        # Steps that are not run, beyond the room, need columns too.
        self.written.copy_((shape.width + own * shape.slots).clamp(max=shape.columns - shape.slots)[:, None] + slots)
        for function, masks in self.masks:
            masks.copy_(additive_masks(function, shape, self.lengths, at, masks.dtype))
        self.clock.zero_()
        self.step, self.clock_behind = 0, False

    def at(self, table: Tensor) -> Tensor:
        """The row of the step that runs."""
        return table.index_select(0, self.clock)[0] if self.recording else table[self.step]

    def put(self, table: Tensor, row: Tensor) -> None:
        """Set the row of the step that runs."""
        if self.recording:
            table.index_copy_(0, self.clock, row.to(table.dtype)[None])
        else:
            table[self.step] = row

    def next_mask(self, function: MaskFunction, dtype: torch.dtype) -> Tensor:
        """The mask of one more kind of layer, in the order of the forward; see `masks.Masks`."""
        if self.asked == len(self.masks):
            at = self.lengths + (self.used - self.step + self.steps)[:, None]
            self.masks.append((function, additive_masks(function, self.shape, self.lengths, at, dtype)))
        self.asked += 1
        return self.at(self.masks[self.asked - 1][1])

    def start_forward(self) -> Tensor:
        """Make ready for a forward of `token`; returns its positions [rows, 1]."""
        self.asked = 0
        self.cache.written = self.at(self.written)
        return self.at(self.positions)

    def advance(self) -> None:
        """Go on to the next step; in a recording, on the device too."""
        if self.recording:
            self.clock.add_(1)
        else:
            self.step += 1
            self.used += 1
            self.clock_behind = True

    def follow(self, replay: Callable[[], None]) -> None:
        """Replay a recorded step, which advances the clock on the device."""
        if self.clock_behind:
            self.clock.fill_(self.step)
            self.clock_behind = False
        replay()
        self.step += 1
        self.used += 1

    def moved_to(self, other: State, copies: Tensor | None = None) -> State:
        """Another state, of the same slots and width, with what this one holds: all of it, or only these copies."""
        other.cache.adopt(self.cache, copies)
        other.used = self.used
        other.lengths.copy_(self.lengths if copies is None else self.lengths[copies])
        token = self.token.view(self.shape.copies, -1)
        other.token.copy_((token if copies is None else token[copies]).flatten())
        return other
