"""Evaluation on held-out data, which is never trained on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ...datums.files.report import DataReport
from ...datums.types import Datum
from .reasoning_gym_tasks import Question, Task, answer_questions, mean_score

if TYPE_CHECKING:
    from ...trainer import TrainingClient


@dataclass(frozen=True)
class HeldOut:
    """Held-out datums, whose loss is measured, and a task's questions, whose answers are scored; either may be empty.

    measure gives  held_out_nll     of the right answers, nats per token; tokens of negative weight are none of them
                   held_out_score   mean score of the greedy answers by the task's verifier, 0 to 1
                   held_out_verifier_failures  how many of these answers the verifier failed on and scored 0, if any
    """

    datums: Sequence[Datum] = ()
    task: Task | None = None
    questions: Sequence[Question] = ()
    max_tokens: int = 32
    answers: list[str] = field(default_factory=list)

    def measure(self, training: TrainingClient) -> dict[str, float]:
        """Evaluate the current weights; `answers` then holds the answers."""
        metrics: dict[str, float] = {}
        if datums := to_imitate(self.datums):
            output = training.forward(datums, "cross_entropy", {"reduction": "token-mean"}).result()
            metrics["held_out_nll"] = output.metrics["loss:sum"]
        if self.task is not None and self.questions:
            sampler = training.save_weights_and_get_sampling_client()
            self.answers[:] = answer_questions(sampler, self.questions, max_tokens=self.max_tokens)
            before = self.task.verifier_failures
            metrics["held_out_score"] = mean_score(self.task, self.questions, self.answers)
            if failures := self.task.verifier_failures - before:
                metrics["held_out_verifier_failures"] = float(failures)
        return metrics


def to_imitate(datums: Sequence[Datum]) -> list[Datum]:
    """The datums with weight 0 on tokens to unlearn, those of negative weight; without the datums that hold nothing else."""
    made = []
    for datum in datums:
        weights = datum.loss_fn_inputs["weights"].to_numpy()
        if (weights < 0).any():
            if not (weights > 0).any():
                continue
            datum = Datum(datum.model_input, {**datum.loss_fn_inputs, "weights": np.maximum(weights, 0)})
        made.append(datum)
    return made


def warn_of_repeated_rows(held_out: DataReport, trained: DataReport) -> None:
    """Print a line on stderr about held-out rows that also occur in the training data: they measure memorization.

    The training data's report keeps them too, for the page on the run.
    """
    repeated = trained.in_held_out = held_out.repeated_from(trained)
    if repeated.count:
        rows = "; ".join(repeated.examples)
        print(f"warning: {repeated.count} held-out rows also occur in the training data: {rows}", file=sys.stderr)
