"""reasoning-gym: its questions and its verifiers.

A task is [name, settings, seed], and an entry [*task, size of the data set, index]. Equal ones give equal questions: Python's
and NumPy's global generators, from which some tasks draw, are seeded for each; this process has PYTHONHASHSEED 0, since some
tasks draw from sets.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

Task = Sequence[Any]


class Gym:
    """Calls are {"tasks": None}, {"settings": name}, {"check": task}, {"question": entry} and {"row": entry}."""

    def __init__(self) -> None:
        self._gym: Any = importlib.import_module("reasoning_gym")
        self._data: dict[str, Any] = {}
        self._entries: dict[str, Mapping[str, Any]] = {}

    def call(self, request: Mapping[str, Any]) -> Any:
        """The names of all tasks; a task's settings; None or why a task takes no such settings; an entry."""
        ((kind, what),) = request.items()
        known = self._gym.factory.DATASETS
        if kind == "tasks":
            return sorted(known)
        if kind == "settings":
            return [setting.name for setting in fields(known[what][1])]
        if kind == "check":
            return self._refusal(what)
        entry = self._entry(what)
        if kind == "question":
            answer = entry["answer"]
            return [str(entry["question"]), None if answer is None else str(answer)]
        return json.loads(json.dumps(entry, default=_as_json))

    def prepare(self, what: Sequence[Any]) -> bool:
        """Draw the entry, unless that was done."""
        is_new = json.dumps(what) not in self._entries
        self._entry(what)
        return is_new

    def score(self, what: Sequence[Any], answer: str) -> float:
        """The verifier's score."""
        entry = self._entry(what)
        with _seeded(what):
            return float(self._data_set(what[:-1]).score_answer(answer=answer, entry=dict(entry)))

    def _entry(self, what: Sequence[Any]) -> Mapping[str, Any]:
        key = json.dumps(what)
        if key not in self._entries:
            data = self._data_set(what[:-1])
            with _seeded(what):
                self._entries[key] = data[what[-1]]
        return self._entries[key]

    def _refusal(self, task: Task) -> str | None:
        try:
            self._data_set([*task, 1])
        except (TypeError, ValueError, AssertionError) as error:
            return str(error)
        return None

    def _data_set(self, what: Sequence[Any]) -> Any:
        key = json.dumps(what)
        if key not in self._data:
            name, settings, seed, size = what
            with _seeded([*what, 0]):
                self._data[key] = self._gym.create_dataset(name, size=size, seed=seed, **settings)
        return self._data[key]


@contextmanager
def _seeded(what: Sequence[Any]) -> Iterator[None]:
    """Seed the global generators by an entry's seed and index."""
    seed = what[2] + what[-1]
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % (1 << 32))
    yield


def _as_json(value: Any) -> Any:
    """NumPy's values as Python's, sets as lists, and anything else as text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return sorted(value, key=repr) if isinstance(value, set | frozenset) else str(value)
