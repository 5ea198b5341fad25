"""The sampling loop: choose a token for every row, record it, drop finished rows, extend the others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ...datums.errors import ModelError
from ..model.model import LoadedModel
from .choice import choose
from .continuations import Continuations
from .params import Rules
from .plan import Plan
from .stops import StopStrings

#: Finished rows are dropped once they are this fraction of all: each costs its share of every step, dropping costs a copy.
FINISHED_PART = 1 / 8


@dataclass(frozen=True)
class Progress:
    """Progress of a call, over all its prompts and samples.

    tokens             generated so far
    running, finished  continuations being decoded, and those that have stopped; others have not started
    tokens_per_second  since the call began, including the time to read prompts
    """

    tokens: int
    running: int
    finished: int
    tokens_per_second: float


class Meter:
    """Sums progress over the batches of a call, and reports it after every step."""

    def __init__(self, report: Callable[[Progress], None] | None) -> None:
        self.report = report
        self.tokens = self.finished = 0
        self.start = time.perf_counter()

    def advance(self, tokens: int, running: int, finished: int) -> None:
        """Add tokens and finished rows; `running` rows go on."""
        self.tokens += tokens
        self.finished += finished
        if self.report is not None:
            speed = self.tokens / max(time.perf_counter() - self.start, 1e-9)
            self.report(Progress(self.tokens, running, self.finished, speed))


@dataclass
class Row:
    """One continuation in progress; `before` is the last token of its prompt."""

    prompt: int
    sample: int
    before: int
    limit: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop_reason: Literal["stop", "length"] | None = None


class Batch:
    """Decodes some prompts together. `rows` and the continuations' rows are the same, in the same order."""

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
        meter: Meter,
    ) -> None:
        self.model, self.num_samples, self.rules, self.logits, self.meter = model, num_samples, rules, logits, meter
        self.random = [_generator(seed) for seed in seeds]
        limits = [limit(model, prompt, rules) for prompt in prompts]
        self.stops = StopStrings(model.tokenizer, rules.stop_strings)
        self.everything = [
            Row(p, sample, prompts[p][-1], most) for p, most in enumerate(limits) for sample in range(num_samples)
        ]
        self.rows = list(self.everything)
        self.continuations = Continuations(
            model, prompts, num_samples, max(limits), share_prompts=plan.share, cached=plan.cached
        )

    def run(self) -> list[list[Row]]:
        """Decode until every row has stopped; the rows of each prompt."""
        hidden = self.continuations.read()
        while True:
            tokens = self._record(*choose(self.logits(hidden), self.rules, self._uniforms()))
            if not any(row.stop_reason is None for row in self.rows):
                break
            hidden = self.continuations.extend(self._drop_finished(tokens))
        return [self.everything[i : i + self.num_samples] for i in range(0, len(self.everything), self.num_samples)]

    def _record(self, tokens: Tensor, logprobs: Tensor) -> Tensor:
        """Append a token and its logprob [rows] to each running row; returns the tokens."""
        running = [row for row in self.rows if row.stop_reason is None]
        for row, token, logprob in zip(self.rows, tokens.tolist(), logprobs.tolist(), strict=True):
            if row.stop_reason is not None:
                continue
            if math.isnan(logprob):
                raise ModelError(f"{self.model.name} gave NaN logits after {len(row.tokens)} generated tokens")
            row.tokens.append(token)
            row.logprobs.append(min(logprob, 0.0))  # rounding can put a certain token slightly above 0
            if token in self.rules.stop_ids or self.stops.completed(row.before, row.tokens):
                row.stop_reason = "stop"
            elif len(row.tokens) == row.limit:
                row.stop_reason = "length"
        going_on = sum(row.stop_reason is None for row in running)
        self.meter.advance(len(running), going_on, len(running) - going_on)
        return tokens

    def _uniforms(self) -> Tensor | None:
        """One number in [0, 1) per row. Each prompt has its own stream, so other prompts do not change its samples."""
        if self.rules.temperature == 0:
            return None
        drawn = {
            prompt: torch.rand(self.num_samples, generator=self.random[prompt], dtype=torch.float64).tolist()
            for prompt in {row.prompt for row in self.rows}
        }
        return torch.tensor([drawn[row.prompt][row.sample] for row in self.rows], dtype=torch.float64)

    def _drop_finished(self, tokens: Tensor) -> Tensor:
        """Drop finished rows once they are many; returns the tokens [rows] of those that stay."""
        running = [i for i, row in enumerate(self.rows) if row.stop_reason is None]
        if len(self.rows) - len(running) < max(1, FINISHED_PART * len(self.rows)):
            return tokens
        kept = torch.tensor(running, device=tokens.device)
        self.continuations.keep(kept)
        self.rows = [self.rows[i] for i in running]
        return tokens[kept]


def limit(model: LoadedModel, prompt: Sequence[int], rules: Rules) -> int:
    """How many tokens a continuation of a prompt can have."""
    room = (model.max_length or len(prompt) + (rules.max_tokens or 0)) - len(prompt)
    return min(rules.max_tokens or room, room)


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    generator.manual_seed(generator.seed() if seed is None else seed)
    return generator
