"""The sampling loop: choose a token for every row, record it, drop finished rows, extend the others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import ModelError
from ..device import path_of
from ..model.model import LoadedModel
from .blocks import STEPS, Blocks, Chosen
from .continuations import Continuations
from .params import Rules
from .plan import Plan
from .static.graph import Graphs
from .static.states import States
from .stops import StopStrings

#: Finished rows are dropped once they are this fraction of all: each costs its share of every step, dropping costs a copy.
#: On a GPU a row costs little, and other shapes of buffers have to be made and recorded.
FINISHED_PART = {"cpu": 1 / 8, "cuda": 1 / 2, "other": 1 / 2}


@dataclass(frozen=True)
class Progress:
    """Progress of a call, over all its prompts and samples.

    tokens             generated so far
    running, finished  continuations being decoded, and those that have stopped; others have not started
    tokens_per_second  since the call began, including the time to read prompts
    newest             the tokens of this step, one for each continuation that was running, in order; of a call with one
                       prompt and one sample, its next token
    """

    tokens: int
    running: int
    finished: int
    tokens_per_second: float
    newest: tuple[int, ...] = ()


class Meter:
    """Sums progress over the batches of a call, and reports it after every step."""

    def __init__(self, report: Callable[[Progress], None] | None) -> None:
        self.report = report
        self.tokens = self.finished = 0
        self.start = time.perf_counter()

    def advance(self, newest: Sequence[int], running: int, finished: int) -> None:
        """Add a step's tokens and finished rows; `running` rows go on."""
        self.tokens += len(newest)
        self.finished += finished
        if self.report is not None:
            speed = self.tokens / max(time.perf_counter() - self.start, 1e-9)
            self.report(Progress(self.tokens, running, self.finished, speed, tuple(newest)))


@dataclass
class Row:
    """One continuation in progress; `before` is the last token of its prompt."""

    prompt: int
    sample: int
    before: int
    limit: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    stop_reason: Literal["stop", "length"] | None = None


class Batch:
    """Decodes some prompts together. `rows` and the rows that `blocks` extends are the same, in the same order."""

    def __init__(
        self,
        model: LoadedModel,
        prompts: Sequence[list[int]],
        num_samples: int,
        rules: Rules,
        *,
        seeds: Sequence[int | None],
        logits: Callable[[Tensor], Tensor],
        plan: Plan,
        states: States,
        meter: Meter,
    ) -> None:
        self.model, self.num_samples, self.rules, self.meter = model, num_samples, rules, meter
        self.random = [_generator(seed) for seed in seeds]
        limits = [limit(model, prompt, rules) for prompt in prompts]
        self.stops = StopStrings(model.tokenizer, rules.stop_strings)
        self.everything = [
            Row(p, sample, prompts[p][-1], most) for p, most in enumerate(limits) for sample in range(num_samples)
        ]
        self.rows = list(self.everything)
        path = path_of(model.device)
        self.steps, self.finished_part = STEPS[path], FINISHED_PART[path]
        self.blocks = blocks_for(model, prompts, num_samples, max(limits), plan, states, logits, rules)

    def run(self) -> list[list[Row]]:
        """Decode until every row has stopped; the rows of each prompt."""
        while left := [row.limit - len(row.tokens) for row in self.rows if row.stop_reason is None]:
            self._drop_finished()
            steps = min(self.steps, max(left))
            self._record(self.blocks.run(steps, self._uniforms(steps)))
        return [self.everything[i : i + self.num_samples] for i in range(0, len(self.everything), self.num_samples)]

    def _record(self, chosen: Chosen) -> None:
        """Append to each running row what was chosen for it, until it stops."""
        for step, (tokens, logprobs, ends) in enumerate(zip(chosen.tokens, chosen.logprobs, chosen.ends, strict=True)):
            running = [i for i, row in enumerate(self.rows) if row.stop_reason is None]
            if not running:
                return
            for i in running:
                self._append(self.rows[i], tokens[i], logprobs[i], ends[i])
                if chosen.top is not None:
                    self.rows[i].top.append((chosen.top[step][0][i], chosen.top[step][1][i]))
            going_on = sum(self.rows[i].stop_reason is None for i in running)
            self.meter.advance([tokens[i] for i in running], going_on, len(running) - going_on)

    def _append(self, row: Row, token: int, logprob: float, is_end: bool) -> None:
        if math.isnan(logprob):
            raise ModelError(f"{self.model.name} gave NaN logits after {len(row.tokens)} generated tokens")
        row.tokens.append(token)
        row.logprobs.append(min(logprob, 0.0))  # rounding can put a certain token slightly above 0
        if is_end or self.stops.completed(row.before, row.tokens):
            row.stop_reason = "stop"
        elif len(row.tokens) == row.limit:
            row.stop_reason = "length"

    def _uniforms(self, steps: int) -> np.ndarray | None:
        """[steps, rows] numbers in [0, 1). Each prompt has its own stream, so other prompts do not change its samples."""
        if self.rules.temperature == 0:
            return None
        prompts = sorted({row.prompt for row in self.rows})
        shape = (steps, self.num_samples)
        drawn = [
            torch.rand(shape, generator=self.random[p], dtype=torch.float64, device="cpu").numpy() for p in prompts
        ]
        first = {prompt: i * self.num_samples for i, prompt in enumerate(prompts)}
        return np.concatenate(drawn, 1)[:, [first[row.prompt] + row.sample for row in self.rows]]

    def _drop_finished(self) -> None:
        """Drop finished rows once they are many."""
        running = [i for i, row in enumerate(self.rows) if row.stop_reason is None]
        if len(self.rows) - len(running) >= max(1, self.finished_part * len(self.rows)):
            self.rows = [self.rows[i] for i in self.blocks.keep(running)]


def limit(model: LoadedModel, prompt: Sequence[int], rules: Rules) -> int:
    """How many tokens a continuation of a prompt can have."""
    room = (model.max_length or len(prompt) + (rules.max_tokens or 0)) - len(prompt)
    return min(rules.max_tokens or room, room)


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    generator.manual_seed(generator.seed() if seed is None else seed)
    return generator


def blocks_for(
    model: LoadedModel,
    prompts: Sequence[list[int]],
    num_samples: int,
    limit: int,
    plan: Plan,
    states: States,
    logits: Callable[[Tensor], Tensor],
    rules: Rules,
) -> Blocks:
    """What extends `num_samples` rows of each prompt by at most `limit` tokens, in the way of a plan."""
    if plan.fixed:
        from .static.blocks import StaticBlocks
        from .static.rows import StaticRows

        rows = StaticRows(model, prompts, num_samples, limit, states=states)
        return StaticBlocks(rows, logits, rules, model.device, Graphs(model))
    own = Continuations(model, prompts, num_samples, limit, share_prompts=plan.share, cached=plan.cached)
    return Blocks(own, logits, rules, model.device)
