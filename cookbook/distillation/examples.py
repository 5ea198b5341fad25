"""Distillation examples: a prompt as student and teacher read it, with a given answer or sampled ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...datums.builders.tokens import shifted
from ...datums.errors import DataFileError, EmptyLossError
from ...datums.files.report import DataReport, build_datums
from ...datums.files.rows import datum_from_row
from ...datums.types import Datum, SamplingParams
from ..tasks.reasoning_gym_tasks import Question
from .teachers import all_tokens, answer_positions

if TYPE_CHECKING:
    from ...trainer import SamplingClient

#: Placeholder of the right answer in a teacher's system turn.
ANSWER = "{answer}"
#: Stands for the answer of a row without one, so that its prompt ends where an answer begins.
_PLACEHOLDER = "."


@dataclass(frozen=True, eq=False)
class DistillationExample:
    """A prompt with its answer, as the student and as the teacher read it; the weights mark the answer."""

    student: Datum
    teacher: Datum

    @property
    def is_alike(self) -> bool:
        """Whether both read the same tokens."""
        return all_tokens(self.student) == all_tokens(self.teacher)

    @property
    def prompts(self) -> tuple[list[int], list[int]]:
        """The tokens before the (last) answer, for the student and for the teacher."""
        return prompt_of(self.student), prompt_of(self.teacher)


def build_examples(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: Any,
    *,
    teacher_system: str | None = None,
    max_length: int | None = None,
    truncation: str = "error",
    answers_needed: bool = True,
    teacher_tokenizer: Any = None,
) -> tuple[list[DistillationExample], DataReport]:
    """One example per row, and a report about the rows.

    rows             as `datum_from_row` takes them; a row of prompt and completion may also have a "teacher_prompt" in
                     the prompt's form
    teacher_system   a system turn for the teacher only; "{answer}" in it is replaced by the row's answer
    max_length       most tokens in a prompt with its answer, the teacher's too; truncation: "error" or "drop"
    answers_needed   False: a prompt may have no completion, to be answered by the student
    teacher_tokenizer   what the teacher reads with, its own chat template included; None: the same

    Raises DataFileError naming the row, and the errors of `build_datums`.
    """
    options: dict[str, Any] = {"max_length": max_length, "truncation": truncation}
    teachers: list[Datum] = []

    def make(row: Mapping[str, Any]) -> Datum:
        student_row, teacher_row = rows_of_both(row, teacher_system, answers_needed=answers_needed)
        teacher = datum_from_row(teacher_row, teacher_tokenizer or tokenizer, **options)
        student = datum_from_row(student_row, tokenizer, **options)
        teachers.append(teacher)  # only now: a row that either cannot read is dropped for both
        return student

    students, report = build_datums(rows, make)
    return [DistillationExample(*pair) for pair in zip(students, teachers, strict=True)], report


def question_row(question: Question) -> dict[str, Any]:
    """A task's question as a row of prompt and completion; without a completion where the task has no right answer."""
    prompt = {"prompt": [{"role": "user", "content": question.text}]}
    if question.answer is None:
        return prompt
    return {**prompt, "completion": [{"role": "assistant", "content": question.answer}]}


def rows_of_both(
    row: Mapping[str, Any], teacher_system: str | None, *, answers_needed: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row as the student reads it, and as the teacher does. Raises DataFileError for a row without what is needed."""
    row = {key: value for key, value in row.items() if value is not None}  # a table has every column in every row
    student = {key: value for key, value in row.items() if key != "teacher_prompt"}
    answer = _answer(student)
    if "prompt" in student and "completion" not in student:
        if answers_needed:
            raise DataFileError("the row has no 'completion', which held-out rows and --mode off_policy need")
        is_chat = isinstance(student["prompt"], list)
        turn: Any = [{"role": "assistant", "content": _PLACEHOLDER}] if is_chat else _PLACEHOLDER
        student["completion"] = turn
    teacher = dict(student)
    if "teacher_prompt" in row:
        if "prompt" not in row or type(row["prompt"]) is not type(row["teacher_prompt"]):
            raise DataFileError(
                "'teacher_prompt' needs a 'prompt' of the same form beside it: both texts, or both messages"
            )
        teacher["prompt"] = row["teacher_prompt"]
    if teacher_system is not None:
        key = "messages" if "messages" in teacher else "prompt"
        if not isinstance(teacher.get(key), list):
            raise DataFileError(
                "teacher_system adds a turn to messages, but the row has none; give it a 'teacher_prompt' instead"
            )
        teacher[key] = _with_system(teacher[key], _filled(teacher_system, answer))
    return student, teacher


def sample_answers(
    sampler: SamplingClient, examples: Sequence[DistillationExample], *, samples: int, max_tokens: int, seed: int
) -> tuple[list[Datum], list[Datum]]:
    """Sample `samples` answers of the student to each prompt; returns the student's datums and the teacher's of them.

    The student's carry `sampling_logprobs` [N] (nats, 0 on the prompt); answered tokens have weight 1. Tokens are drawn
    at temperature 1 without truncation, so these logprobs are exactly those of the sampling distribution.
    """
    prompts = [example.prompts for example in examples]
    params = SamplingParams(max_tokens=max_tokens, seed=seed)
    responses = sampler.sample_batch([own for own, _ in prompts], params, num_samples=samples).result()
    students, teachers = [], []
    for (own, other), response in zip(prompts, responses, strict=True):
        for sequence in response.sequences:
            students.append(_answered(own, sequence.tokens, sampling_logprobs=sequence.logprobs))
            teachers.append(_answered(other, sequence.tokens))
    return students, teachers


def prompt_of(datum: Datum) -> list[int]:
    """The tokens before the last answer, which begins at the last run of nonzero weights."""
    positions = answer_positions(datum)
    if not len(positions):
        raise EmptyLossError("the example has no answer: all its weights are 0")
    begins = positions[np.flatnonzero(np.diff(positions, prepend=-2) > 1)]
    return all_tokens(datum)[: int(begins[-1]) + 1]


def _answered(prompt: list[int], answer: list[int], **per_answer_token: list[float]) -> Datum:
    zeros = np.zeros(len(prompt), dtype=np.float32)
    given = {"weights": [1.0] * len(answer), **per_answer_token}
    per_token = {key: np.concatenate([zeros, np.asarray(values, dtype=np.float32)]) for key, values in given.items()}
    return shifted(np.asarray([*prompt, *answer], dtype=np.int64), per_token)


def _answer(row: Mapping[str, Any]) -> str | None:
    """The text of the row's answer: its completion, or its last assistant turn."""
    turns = row.get("completion", row.get("messages"))
    if isinstance(turns, str):
        return turns
    if not isinstance(turns, list):
        return None
    said = [turn["content"] for turn in turns if isinstance(turn, Mapping) and turn.get("role") == "assistant"]
    return said[-1] if said and isinstance(said[-1], str) else None


def _filled(text: str, answer: str | None) -> str:
    if ANSWER in text and answer is None:
        raise DataFileError(f"teacher_system contains {ANSWER}, but the row has no answer")
    return text.replace(ANSWER, answer or "")


def _with_system(messages: list[Any], text: str) -> list[Any]:
    """The turns with `text` as their system turn, or put before the text of the one they have."""
    first = messages[0] if messages and isinstance(messages[0], Mapping) else {}
    if first.get("role") == "system" and isinstance(first.get("content"), str):
        return [{**first, "content": f"{text}\n\n{first['content']}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]
