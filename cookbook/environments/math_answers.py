"""Mathematical answers, compared by math-verify: 1/2, 0.5 and \\frac{1}{2} are one answer.

math-verify by Hugging Face, https://github.com/huggingface/Math-Verify (Apache-2.0), parses LaTeX with SymPy and compares.
`final_answers.py` gives it both answers whole. Two answers that are the same text are equal; words are compared as text.

A model may answer 9^9^9^9, which SymPy would evaluate forever. So answers are compared in a confined process
(`cookbook/confined`), with limits of time and memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...datums.errors import RewardError
from ..confined.process import Failure, Failures, confined
from ..extras import require_installed
from ..settings.choices import SECONDS
from .final_answers import Answer, count_words, final_answer, read_answer, stated_answers
from .rewards import shortened

#: A row's answer of more words than this is prose, which nobody repeats word for word.
MOST_WORDS = 6


class MathReward:
    """1 where the answer's final answer equals `row["answer"]`, else 0.

    The final answer is in the last box, after `####` or "answer is", the whole text, or its last expression. A text
    without one gets 0, and so does one that takes more than `seconds` to compare, which is counted in `failures`. Raises MissingExtraError without math-verify,
    RewardError for a row whose right answer is empty or prose.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        require_installed("math_verify", "data", "comparing mathematical answers")
        self.failures = Failures()
        self._right: dict[str, Answer] = {}
        self._seconds = seconds
        self._process = confined("mathematics")

    def __call__(self, answer: str, row: Mapping[str, Any]) -> float:
        """The reward of an answer, 0 or 1."""
        right = self.right_answer(str(row["answer"]))
        if any(given is not None and given.text == right.text for given in map(read_answer, stated_answers(answer))):
            return 1.0
        final = final_answer(answer)
        if final is None:  # mathematics in prose: math-verify finds the last
            return 0.0 if right.latex is None else self._compare(right.latex, answer, is_whole=False)
        given = read_answer(final)
        if given is None or given.latex is None or right.latex is None:
            return 0.0
        return self._compare(right.latex, given.latex, is_whole=True)

    def right_answer(self, text: str) -> Answer:
        """The right answer of a row. Raises RewardError for an empty one, and for prose without a final answer."""
        if text not in self._right:
            stated = final_answer(text) if "\\boxed" in text or "####" in text else text
            answer = read_answer(stated or "")
            if answer is None or (answer.latex is None and count_words(stated or "") > MOST_WORDS):
                raise RewardError(
                    f"math_verify compares final answers, and the answer {shortened(text)} is "
                    f"{'empty' if answer is None else 'prose'}. Write the final answer alone, in \\boxed{{}} or after ####; "
                    "for other answers use a reward function of your own: --reward module:function"
                )
            self._right[text] = answer
        return self._right[text]

    def _compare(self, right: str, answer: str, *, is_whole: bool) -> float:
        score = self._process.score([right, is_whole], answer, seconds=self._seconds)
        if isinstance(score, Failure):
            self.failures.note(f"math-verify failed on the answer {shortened(answer)}: {score.text}")
            return 0.0
        return score
