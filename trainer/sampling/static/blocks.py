"""Blocks of steps over buffers of fixed size, where a step can be recorded once and replayed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..blocks import Blocks, Chosen
from ..choice import wide_dtype
from ..params import Rules
from .graph import Graphs
from .rows import StaticRows


class StaticBlocks(Blocks):
    """`Blocks` of `StaticRows`. What a step reads and writes lies in the rows' state."""

    def __init__(
        self,
        rows: StaticRows,
        logits: Callable[[Tensor], Tensor],
        rules: Rules,
        device: torch.device,
        graphs: Graphs,
    ) -> None:
        super().__init__(rows, logits, rules, device)
        self.static, self.graphs = rows, graphs

    def run(self, steps: int, uniforms: np.ndarray | None) -> Chosen:
        """Take so many steps, at most BLOCK."""
        given = None if uniforms is None else self._uploaded(uniforms)
        if self.newest is None:
            first = self._step(None if given is None else given[0])
            self.static.state.token.copy_(first[0])
            return self._joined(first, steps - 1, None if given is None else given[1:])
        return self._joined(None, steps, given)

    def _joined(self, first: tuple[Tensor, Tensor] | None, steps: int, uniforms: Tensor | None) -> Chosen:
        tokens, logprobs = [], []
        if first is not None:
            tokens, logprobs = [first[0][None]], [first[1][None].to(wide_dtype(self.device))]
        if steps:
            self.static.begin(steps)
            state = self.static.state
            if uniforms is not None:
                state.uniforms[:steps] = uniforms
            for left in range(steps, 0, -1):
                self.graphs.run(state, self._static_step, left)
            tokens.append(state.tokens[:steps])
            logprobs.append(state.logprobs[:steps])
        return self._read(torch.cat(tokens), torch.cat(logprobs))

    def _static_step(self) -> None:
        state = self.static.state
        uniforms = None if self.rules.temperature == 0 else state.at(state.uniforms)
        tokens, logprobs = self.choose(self.logits(self.static.forward()), self.rules, uniforms)
        state.token.copy_(tokens)
        state.put(state.tokens, tokens)
        state.put(state.logprobs, logprobs)
        state.advance()
