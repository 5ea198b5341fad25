"""Tasks of reasoning-gym, which check their own answers; held-out questions are never among those trained on."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...datums.chat.masks import datum_from_messages
from ...datums.chat.template import decoded, prompt_of_user
from ...datums.errors import TaskError, did_you_mean
from ...datums.types import Datum, ModelInput, SamplingParams
from ..confined.process import Failure, Failures, confined
from ..extras import require_installed
from ..settings.choices import SECONDS

if TYPE_CHECKING:
    from ...trainer import SamplingClient

#: At most this many times the wanted number of questions are drawn to get enough different ones.
PATIENCE = 20
#: Tasks whose verifiers call Python's eval on the answer, in reasoning-gym 0.1.25; a test looks for others.
EVALUATING = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}
#: What such an answer may consist of: lists of numbers and texts, and bare words.
_LITERAL = (ast.Expression, ast.List, ast.Tuple, ast.Constant, ast.Name, ast.UnaryOp, ast.unaryop, ast.expr_context)

#: Tasks whose verifiers hand the answer to sympy's parser, which calls Python's eval too.
PARSING = {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
#: What can be no code, even for a verifier that evaluates it: numbers, operators and brackets.
_WITHOUT_WORDS = re.compile(r"[0-9\s+\-*/^().,=\[\]]*")
#: Words that such an answer may hold beside numbers, operators and single letters.
FUNCTIONS = {
    *("sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "sinh", "cosh", "tanh"),
    *("exp", "log", "ln", "sqrt", "Abs", "pi", "Integral"),
}


@dataclass(frozen=True)
class Question:
    """A question with its right answer, None where the task has none.

    entry: reasoning-gym's, by [task, settings, seed, size of the data set, index], for its verifier.
    """

    text: str
    answer: str | None
    entry: tuple[Any, ...] = field(repr=False)


class Task:
    """A reasoning-gym data set. Equal arguments give equal questions, in every process.

    name: as in `reasoning_gym.create_dataset`, such as "family_relationships". settings: its configuration. seconds: that the
    verifier may take for an answer. failures: counts the answers that the verifier failed on, each of which `score` gives 0.

    Questions are drawn, and answers scored, in a confined process (`cookbook/confined`). Raises MissingExtraError without
    reasoning-gym, TaskError for an unknown name or setting.
    """

    def __init__(
        self, name: str, settings: Mapping[str, Any] | None = None, *, seed: int = 0, seconds: float = SECONDS
    ) -> None:
        self.name = name
        self.settings = dict(settings or {})
        self.seed = seed
        self.seconds = seconds
        self.failures = Failures()
        require_installed("reasoning_gym", "data", f"task {name!r}")
        self._gym = confined("gym")
        self._check()

    @property
    def verifier_failures(self) -> int:
        """How many answers the task's verifier failed on."""
        return self.failures.count

    def held_out(self, count: int) -> list[Question]:
        """`count` different questions. Raises TaskError when the task has fewer."""
        if not count:
            return []
        questions: dict[str, Question] = {}
        for question in self._drawn(PATIENCE * count):
            questions.setdefault(question.text, question)
            if len(questions) == count:
                return list(questions.values())
        raise TaskError(
            f"{self.name} with {self.settings or 'its defaults'} has only {len(questions)} different questions, fewer than "
            f"the {count} to hold out. Widen its settings, or hold out fewer"
        )

    def training(self, count: int, held_out: Sequence[Question]) -> list[Question]:
        """`count` questions, none of them held out; a small task repeats some. Raises TaskError when too few are left."""
        excluded = {question.text for question in held_out}
        questions: list[Question] = []
        for question in self._drawn(PATIENCE * count + len(held_out)):
            if question.text not in excluded:
                questions.append(question)
            if len(questions) == count:
                return questions
        raise TaskError(f"{self.name} leaves fewer than {count} questions to train on beside {len(held_out)} held out")

    def row(self, question: Question) -> Mapping[str, Any]:
        """{"question", "answer", "metadata"} of reasoning-gym, as JSON values."""
        return self._gym.call(row=question.entry)

    def check_references(self, questions: Sequence[Question]) -> None:
        """Raise TaskError unless each question has an answer that the task's verifier scores 1, so that it can be imitated."""
        for question in questions:
            if question.answer is None:
                what = "comes without an answer"
            elif (score := self._score(question, question.answer, is_trusted=True)) < 1:
                what = f"comes with the answer {question.answer[:60]!r}, which its own verifier scores {score:.3g}"
            else:
                continue
            raise TaskError(
                f"{self.name} cannot be imitated: its question {' '.join(question.text.split())[:60]!r} {what}. Learn it from "
                f"rewards, `lossbook train rl --task {self.name}`, or choose another task"
            )

    def score(self, question: Question, answer: str) -> float:
        """The score of the task's verifier: 1 for the right answer, less for others. Spaces around it are ignored.

        0 where the verifier fails, as some do on text that is not an answer, and where it takes more than `seconds`; that is
        counted in `failures`, and the first is printed on stderr. Raises TaskError where the verifier fails on the
        question's own answer too, or returns no number.
        """
        return self._score(question, answer)

    def _score(self, question: Question, answer: str, *, is_trusted: bool = False) -> float:
        score = self._verify(question, answer, is_trusted=is_trusted)
        if isinstance(score, Failure):
            self._check_verifier(question, answer, score)
            return 0.0
        if not math.isfinite(score):
            raise TaskError(
                f"the verifier of {self.name} returned {score} for the answer {answer[:60]!r}: no finite number"
            )
        return score

    def _verify(self, question: Question, answer: str, *, is_trusted: bool = False) -> float | Failure:
        if (self.name in EVALUATING and _is_code(answer.strip())) or (self.name in PARSING and not _is_formula(answer)):
            return 0.0
        may_run = not is_trusted and (self.name in EVALUATING or self.name in PARSING)
        alone = may_run and not _WITHOUT_WORDS.fullmatch(answer)
        return self._gym.score(question.entry, answer.strip(), seconds=self.seconds, alone=alone)

    def _check_verifier(self, question: Question, answer: str, failure: Failure) -> None:
        """Count an answer that the verifier failed on, unless it fails on the right one too."""
        shown = f"the verifier of {self.name} failed on the answer {answer[:60]!r}: {failure.text}"
        if question.answer is not None and isinstance(self._verify(question, question.answer), Failure):
            raise TaskError(f"{shown}. It fails on the right answer {question.answer[:60]!r} too")
        self.failures.note(shown)

    def _drawn(self, size: int) -> Iterator[Question]:
        """The questions of the data set of this size."""
        for index in range(size):
            entry = (self.name, self.settings, self.seed, size, index)
            text, answer = self._gym.call(question=entry)
            yield Question(text, answer, entry)

    def _check(self) -> None:
        """Raise TaskError for a name or a setting that reasoning-gym does not have, or a value that it refuses."""
        known = self._gym.call(tasks=None)
        if self.name not in known:
            raise TaskError(f"reasoning-gym has no task {self.name!r}.{did_you_mean(self.name, known)}")
        settings = [name for name in self._gym.call(settings=self.name) if name not in ("seed", "size")]
        if unknown := [key for key in self.settings if key not in settings]:
            hint = did_you_mean(unknown[0], settings)
            raise TaskError(f"{self.name} has no setting {unknown[0]!r}.{hint} It has {', '.join(settings)}")
        if refusal := self._gym.call(check=(self.name, self.settings, self.seed)):
            raise TaskError(f"{self.name} does not take the settings {self.settings}: {refusal}")


def _is_formula(answer: str) -> bool:
    """Whether an answer holds nothing but numbers, operators, variables of one letter, and known functions.

    A point is a decimal point only: it stands beside no letter and no bracket.
    """
    if not re.fullmatch(r"[A-Za-z0-9\s+\-*/^().,=]*", answer) or re.search(r"[A-Za-z)]\s*\.|\.\s*[A-Za-z(]", answer):
        return False
    return all(len(word) == 1 or word in FUNCTIONS for word in re.findall("[A-Za-z]+", answer))


def _is_code(answer: str) -> bool:
    """Whether Python's eval would do more with an answer than read lists, numbers and texts."""
    try:
        return any(not isinstance(node, _LITERAL) for node in ast.walk(ast.parse(answer, mode="eval")))
    except (SyntaxError, ValueError):
        return False  # eval refuses it too
    except (MemoryError, RecursionError):
        return True


def question_prompt(question: Question, tokenizer: Any) -> list[int]:
    """The tokens of the question as a user's turn, up to where the assistant answers."""
    return prompt_of_user(question.text, tokenizer)


def question_datum(question: Question, tokenizer: Any, **options: Any) -> Datum:
    """A conversation of the question and its right answer; the answer and its end-of-turn token are learned.

    options: those of `datum_from_messages`. Raises TaskError for a question without an answer.
    """
    if question.answer is None:
        raise TaskError(f"the question {question.text[:60]!r} comes without an answer, so there is nothing to learn")
    turns = [{"role": "user", "content": question.text}, {"role": "assistant", "content": question.answer}]
    return datum_from_messages(turns, tokenizer, **options)


def answer_questions(sampler: SamplingClient, questions: Sequence[Question], *, max_tokens: int = 32) -> list[str]:
    """The model's greedy answers, decoded as one batch."""
    tokenizer = sampler.get_tokenizer()
    prompts = [ModelInput.from_ints(question_prompt(question, tokenizer)) for question in questions]
    greedy = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    responses = sampler.sample_batch(prompts, greedy).result()
    return [decoded(one.sequences[0].tokens, tokenizer, skip_special_tokens=True).strip() for one in responses]


def mean_score(task: Task, questions: Sequence[Question], answers: Sequence[str]) -> float:
    """The mean score by the task's verifier, 0 to 1."""
    scores = [task.score(question, answer) for question, answer in zip(questions, answers, strict=True)]
    return sum(scores) / len(scores)
