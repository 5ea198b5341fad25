"""Mathematical answers, compared by math-verify: 1/2, 0.5 and \\frac{1}{2} are one answer.

math-verify by Hugging Face, https://github.com/huggingface/Math-Verify (Apache-2.0): it finds the last expression in a
text, LaTeX or plain, parses it with SymPy and compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...datums.errors import RewardError
from ..extras import require
from .rewards import shortened


class MathReward:
    """1 where the answer's last expression equals `row["answer"]`, else 0. An answer without an expression gets 0.

    Raises MissingExtraError without math-verify, RewardError for a row whose own answer is no expression.
    """

    def __init__(self) -> None:
        self._library = require("math_verify", "data", "comparing mathematical answers")
        self._right: dict[str, Any] = {}

    def __call__(self, answer: str, row: Mapping[str, Any]) -> float:
        """The reward of an answer, 0 or 1."""
        right = self.expression(str(row["answer"]))
        # Its time limits are alarms, which only a main thread can set; so there are none.
        found = self._library.parse(answer, parsing_timeout=None)
        return float(bool(self._library.verify(right, found, timeout_seconds=None)))

    def expression(self, text: str) -> Any:
        """The right answer, parsed."""
        if text not in self._right:
            parsed = self._library.parse(text, parsing_timeout=None)
            is_words = len(text) > 1 and text.replace(" ", "").isalpha()  # "cat" would be c times a times t
            if not parsed and not is_words:  # LaTeX without its dollar signs
                parsed = self._library.parse(f"${text}$", parsing_timeout=None)
            if not parsed:
                raise RewardError(
                    f"math-verify finds no expression in the answer {shortened(text)}. Write numbers plainly, LaTeX between "
                    "dollar signs; other answers want a reward function of your own: --reward module:function"
                )
            self._right[text] = parsed
        return self._right[text]
