"""math-verify: whether two answers in LaTeX are equal."""

from __future__ import annotations

import importlib
import logging
from typing import Any


class Mathematics:
    """What is scored is [right answer in LaTeX, whether the given one is one expression]: 1 where both are equal, else 0.

    An expression is read whole or not at all, and a letter behind a number is a variable, not a unit.
    """

    def __init__(self) -> None:
        logging.disable(logging.WARNING)
        normalization: Any = importlib.import_module("latex2sympy2_extended").NormalizationConfig
        self._library: Any = importlib.import_module("math_verify")
        no_units = normalization(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
        self._whole = [self._library.LatexExtractionConfig(normalization_config=no_units, boxed_match_priority=-1)]

    def call(self, request: Any) -> None:
        """There is nothing to ask."""

    def prepare(self, what: Any) -> bool:
        """There is nothing to load."""
        return False

    def score(self, what: Any, answer: str) -> float:
        """1 or 0. What cannot be read is equal to nothing."""
        right, is_whole = what
        try:
            given = self._read(answer) if is_whole else self._library.parse(answer, parsing_timeout=None)
            return float(self._library.verify(self._read(right), given, timeout_seconds=None))
        except MemoryError:
            raise
        except Exception:
            return 0.0

    def _read(self, latex: str) -> Any:
        return self._library.parse(f"${latex}$", self._whole, "no_fallback", "first_match", parsing_timeout=None)
