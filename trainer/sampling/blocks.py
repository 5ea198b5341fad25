"""Several steps of decoding at a time: the host queues them, and reads all their tokens at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..device import path_of
from .choice import choose, choose_unread, likeliest, wide_dtype
from .params import Rules

#: Steps between two reads by the host at most.
BLOCK = 16
#: On a CPU nothing waits for anything, and a step that turns out not to be needed costs a step.
STEPS = {"cpu": 1, "cuda": BLOCK, "other": BLOCK}


class Rows(Protocol):
    """Rows of tokens that a model extends: `Continuations` and `StaticRows`."""

    def read(self) -> Tensor:
        """The last hidden states [rows, d] of the prompts."""
        ...

    def extend(self, tokens: Tensor) -> Tensor:
        """Hidden states [rows, d] after one more token [rows] each."""
        ...

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop rows, but none of these, which are in ascending order; returns the rows that are left."""
        ...


@dataclass(frozen=True)
class Chosen:
    """What the rows were continued with, on the host: [steps, rows] each.

    logprobs  nats; NaN where the logits were
    ends      whether the token is one of the stop tokens
    top       ids and logprobs of the likeliest tokens, [rows, k] each, by step; where they were asked for
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]
    ends: list[list[bool]]
    top: list[tuple[np.ndarray, np.ndarray]] | None = None


class Blocks:
    """Chooses tokens for rows, and extends the rows by them."""

    def __init__(self, rows: Rows, logits: Callable[[Tensor], Tensor], rules: Rules, device: torch.device) -> None:
        self.rows, self.logits, self.rules, self.device = rows, logits, rules, device
        self.on_cpu = path_of(device) == "cpu"
        self.choose = choose if self.on_cpu else choose_unread
        self.stop_ids = torch.tensor(sorted(rules.stop_ids), dtype=torch.int64, device=device)
        self.newest: Tensor | None = None
        self.top: list[tuple[Tensor, Tensor]] = []  # of the steps that were not read

    def run(self, steps: int, uniforms: np.ndarray | None) -> Chosen:
        """Take so many steps. uniforms: [steps, rows] in [0, 1); None for the likeliest tokens."""
        given = None if uniforms is None else self._uploaded(uniforms)
        pairs = [self._step(None if given is None else given[step]) for step in range(steps)]
        if self.on_cpu:
            tokens, logprobs = ([row.tolist() for row in each] for each in zip(*pairs, strict=True))
            ends = [[token in self.rules.stop_ids for token in row] for row in tokens]
            return Chosen(tokens, logprobs, ends, self._read_top())
        return self._read(*(torch.stack(each) for each in zip(*pairs, strict=True)))

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop rows, but none of these; returns the rows that are left."""
        left = self.rows.keep(rows)
        if self.newest is not None and len(left) < len(self.newest):
            self.newest = self.newest[torch.tensor(left, device=self.device)]
        return left

    def _step(self, uniforms: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden = self.rows.read() if self.newest is None else self.rows.extend(self.newest)
        logits = self.logits(hidden)
        self.newest, logprobs = self.choose(logits, self.rules, uniforms)
        if (top := likeliest(logits, self.rules)) is not None:
            self.top.append(top)
        return self.newest, logprobs

    def _uploaded(self, uniforms: np.ndarray) -> Tensor:
        host = torch.from_numpy(uniforms).to(wide_dtype(self.device))
        if self.device.type == "cuda":
            host = host.pin_memory()
        return host.to(self.device, non_blocking=True)

    def _read(self, tokens: Tensor, logprobs: Tensor) -> Chosen:
        """All of a block in one copy; float64 holds every token id exactly, float32 those below 2^24."""
        wide = wide_dtype(self.device)
        ends = torch.isin(tokens, self.stop_ids)
        report = torch.stack([tokens.to(wide), logprobs.to(wide), ends.to(wide)]).cpu().numpy()
        lists = report[0].astype(np.int64).tolist(), report[1].tolist(), (report[2] != 0).tolist()
        return Chosen(*lists, self._read_top())

    def _read_top(self) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """The likeliest tokens of the steps since the last read; None where nobody asked for them."""
        top, self.top = self.top, []
        return [(ids.cpu().numpy(), logprobs.float().cpu().numpy()) for ids, logprobs in top] or None
