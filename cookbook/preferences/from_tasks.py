"""Preference pairs from a task that checks its own answers: the right answer, and a similar wrong one."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from ...datums.errors import TaskError
from ..settings.choices import WrongAnswer
from ..tasks.reasoning_gym_tasks import Question, Task

#: How many wrong answers are tried for a question.
TRIES = 200


def preference_rows(
    task: Task, questions: Sequence[Question], wrong_answer: WrongAnswer, seed: int
) -> list[dict[str, Any]]:
    """A row {"prompt", "chosen", "rejected"} of messages for each question. Equal arguments give equal rows.

    The task's verifier judges every chosen answer right and every rejected one wrong. Raises TaskError for a question
    without such answers.
    """
    task.check_references(questions)
    drawn = random.Random(seed)
    rows = []
    for question in questions:
        candidates = _candidates(question, questions, wrong_answer, drawn)
        wrong = next((text for text in candidates if text != question.answer and task.score(question, text) < 1), None)
        if wrong is None:
            raise TaskError(
                f"{task.name}: no {wrong_answer} answer is wrong for {question.text[:60]!r}, whose right answer is "
                f"{question.answer!r}. Choose another --wrong-answer or another task"
            )
        rows.append(
            {
                "prompt": [{"role": "user", "content": question.text}],
                "chosen": [{"role": "assistant", "content": question.answer}],
                "rejected": [{"role": "assistant", "content": wrong}],
            }
        )
    return rows


def _candidates(
    question: Question, questions: Sequence[Question], wrong_answer: WrongAnswer, drawn: random.Random
) -> Iterator[str]:
    if wrong_answer == "scrambled":
        return (scrambled(question.answer or "", drawn) for _ in range(TRIES))
    return (drawn.choice(questions).answer or "" for _ in range(TRIES))


def scrambled(answer: str, drawn: random.Random) -> str:
    """The answer's words (or parts between commas) in another order, with no two neighbours exchanged.

    It does not begin with the answer's last word either. So in a task that reverses a list, it copies no more of the question
    than the right answer does; otherwise a model that tends to copy would prefer it from the start. Returns the answer itself
    where `TRIES` shuffles give no such order.
    """
    separator = ", " if ", " in answer else " "
    words = answer.split(separator)
    order = list(range(len(words)))
    for _ in range(TRIES):
        drawn.shuffle(order)
        is_another = order != sorted(order)
        if is_another and order[0] != len(words) - 1 and all(after != before - 1 for before, after in pairwise(order)):
            return separator.join(words[i] for i in order)
    return answer
