"""A user's reward function in a confined process, for functions that evaluate what the model wrote."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from ...datums.errors import DataFileError
from ..confined.process import Failure, Failures, confined
from ..settings.choices import SECONDS
from .rewards import shortened


class ConfinedReward:
    """`module:function`, imported and called in a confined process (`cookbook/confined`), each answer in a fork of it.

    The function sees its row as JSON values, reads files below Python's import path only, and keeps nothing from one answer to
    the next. An answer for which it takes more than `seconds` or too much memory, or crashes, gets 0 and is counted in
    `failures`. Raises RewardError where the module cannot be imported there.
    """

    def __init__(self, name: str, seconds: float = SECONDS) -> None:
        self.failures = Failures()
        self._name = name
        self._seconds = seconds
        folders = tuple(dict.fromkeys(os.path.abspath(path) for path in sys.path if os.path.exists(path or ".")))
        self._process = confined("function", name, folders)
        self._process.call(start=None)

    def __call__(self, answer: str, row: Mapping[str, Any]) -> float | Failure:
        """The reward, or the error that the function raised."""
        score = self._process.score(dict(row), answer, seconds=self._seconds, alone=True)
        if isinstance(score, Failure) and score.is_limit:
            self.failures.note(f"reward {self._name} failed on the answer {shortened(answer)}: {score.text}")
            return 0.0
        return score

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Raise DataFileError for a row with a value that JSON does not have."""
        for key, value in row.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError):
                raise DataFileError(
                    f"{key!r} holds a {type(value).__name__}, which a confined reward cannot read: it gets its row as JSON. Write "
                    "it as text, or leave --confine-rewards out"
                ) from None
