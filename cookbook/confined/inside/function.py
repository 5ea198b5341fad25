"""A user's reward function, `reward(answer, row) -> float`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


class Function:
    """What is scored is a row of data."""

    def __init__(self, path: str) -> None:
        """path: "module:function". The module is imported here, without walls, as users' modules are everywhere."""
        module, _, name = path.partition(":")
        self._function: Callable[[str, Any], float] = getattr(importlib.import_module(module), name)

    def call(self, request: Any) -> None:
        """There is nothing to ask."""

    def prepare(self, what: Any) -> bool:
        """There is nothing to load."""
        return False

    def score(self, what: Any, answer: str) -> float:
        """The reward. Raises TypeError for anything but a number."""
        value = self._function(answer, what)
        if isinstance(value, str):
            raise TypeError(f"it returned the text {value[:60]!r}, not a number")
        return float(value)
