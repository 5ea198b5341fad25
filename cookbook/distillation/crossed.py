"""A teacher with another tokenizer: what it reads in place of the student's tokens, and how the student does on held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...datums.builders.alignment import Crossed, with_teacher_positions
from ...datums.builders.pieces import Pieces
from ...datums.builders.tokens import shifted
from ...datums.errors import AlignmentError
from ...datums.types import Datum
from ...losses.loss.loss import AnyLoss
from ..tasks.held_out import HeldOut
from .examples import DistillationExample, prompt_of
from .teachers import answer_positions

if TYPE_CHECKING:
    from ...trainer import ReferenceClient, TrainingClient


@dataclass
class Tokenizers:
    """Both tokenizers of a run, and how much of what was crossed so far has a counterpart.

    counts: of the answer tokens. unaligned: sampled answers left out, since the teacher's tokens do not spell their text.
    """

    student: Any
    teacher: Any
    counts: Crossed = field(default_factory=Crossed)
    unaligned: int = 0

    def __post_init__(self) -> None:
        self._own, self._other = Pieces(self.student), Pieces(self.teacher)

    def cross(self, student: Datum, teacher: Datum) -> Datum:
        """The student's datum with `teacher_tokens`, `teacher_positions` and `span_weights`; counts its answer tokens.

        Raises AlignmentError where the two answers are different texts.
        """
        datum, counts = with_teacher_positions(student, teacher, self._own, self._other)
        self.counts += counts
        return datum

    def cross_answers(self, students: Sequence[Datum], examples: Sequence[DistillationExample]) -> list[Datum]:
        """Sampled answers, as many to each example, with the teacher's tokens for the same text.

        An answer that ended has the teacher's own end behind it. Left out and counted are those whose text the teacher
        cannot spell, such as bytes that are no UTF-8. Raises AlignmentError if that is all of them.
        """
        each = len(students) // len(examples)
        made: list[Datum] = []
        for i, student in enumerate(students):
            try:
                made.append(self.cross(student, self._answer_of_teacher(student, examples[i // each])))
            except AlignmentError as error:
                self.unaligned += 1
                if not made and i + 1 == len(students):
                    raise AlignmentError(
                        f"none of the {len(students)} sampled answers can be aligned: {error}"
                    ) from None
        return made

    def metrics(self) -> dict[str, float]:
        """`compared`: the share of answer tokens at which the teacher is compared, of all so far; and `unaligned`, if any."""
        shown = {"compared": self.counts.compared / max(1, self.counts.answers)}
        return {**shown, "unaligned": float(self.unaligned)} if self.unaligned else shown

    def _answer_of_teacher(self, student: Datum, example: DistillationExample) -> Datum:
        answer = student.loss_fn_inputs["target_tokens"].to_numpy()[answer_positions(student)].tolist()
        text = self.student.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        tokens = list(self.teacher(text, add_special_tokens=False)["input_ids"])
        if answer and not self._own.of(answer)[-1]:
            tokens += self._end_of(example.teacher)
        prompt = prompt_of(example.teacher)
        weights = np.concatenate([np.zeros(len(prompt)), np.ones(len(tokens))]).astype(np.float32)
        return shifted(np.asarray([*prompt, *tokens], dtype=np.int64), {"weights": weights})

    def _end_of(self, datum: Datum) -> list[int]:
        """The tokens without text at the end of the teacher's own answer, such as the end of a turn."""
        answer = datum.loss_fn_inputs["target_tokens"].to_numpy()[answer_positions(datum)].tolist()
        pieces = self._other.of(answer)
        written = max((i for i, piece in enumerate(pieces) if piece), default=-1)
        return answer[written + 1 :]


@dataclass(frozen=True)
class HeldOutCrossed:
    """Held-out answers beside a teacher with another tokenizer.

    measure gives  held_out_nll       of the given answers under the student, nats per token
                   held_out_distance  the value of the loss at the compared positions, without cross-entropy
    """

    compared: Sequence[Datum]
    teacher: ReferenceClient
    loss: AnyLoss

    def measure(self, training: TrainingClient) -> dict[str, float]:
        """Evaluate the student's current weights; {} without held-out data."""
        if not self.compared:
            return {}
        distance = training.forward(self.compared, self.loss, teacher=self.teacher).result().metrics["loss:sum"]
        return {"held_out_distance": distance, **HeldOut(self.compared).measure(training)}
