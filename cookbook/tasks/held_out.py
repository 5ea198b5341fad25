"""Measuring on what is never trained on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...datums.files.report import DataReport
from ...datums.types import Datum
from .reasoning_gym_tasks import Question, Task, answer_questions, mean_score

if TYPE_CHECKING:
    from ...trainer import TrainingClient


@dataclass(frozen=True)
class HeldOut:
    """Datums whose loss is watched and, of a task, questions whose answers are scored; there may be none of either.

    measure gives  held_out_nll     nats a token of the right answers
                   held_out_score   mean of the verifier's scores of the likeliest answers, 0 to 1
    """

    datums: Sequence[Datum] = ()
    task: Task | None = None
    questions: Sequence[Question] = ()
    max_tokens: int = 32
    answers: list[str] = field(default_factory=list)

    def measure(self, training: TrainingClient) -> dict[str, float]:
        """Measure the weights as they are. `answers` holds the last answers then."""
        found: dict[str, float] = {}
        if self.datums:
            output = training.forward(self.datums, "cross_entropy", {"reduction": "token-mean"}).result()
            found["held_out_nll"] = output.metrics["loss:sum"]
        if self.task is not None and self.questions:
            sampler = training.save_weights_and_get_sampling_client()
            self.answers[:] = answer_questions(sampler, self.questions, max_tokens=self.max_tokens)
            found["held_out_score"] = mean_score(self.task, self.questions, self.answers)
        return found


def say_what_is_trained_on(held_out: DataReport, trained: DataReport) -> None:
    """A line on stderr that names held-out rows which are among those trained on: they measure memory."""
    found = held_out.repeated_from(trained)
    if found.count:
        print(f"held-out rows that are trained on as well, so that they measure memory: {found}", file=sys.stderr)
