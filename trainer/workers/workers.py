"""`Workers`: the ranks that a service's models live on. They start with the first model, and anew after they died."""

from __future__ import annotations

import importlib
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from .groups import Group
from .sent import SentLoss

#: Modules under it are on every worker.
_PACKAGE = __name__.partition(".")[0]


class Workers:
    """One group at a time. Calls of several threads reach it one after the other.

    make: starts a group.
    """

    def __init__(self, make: Callable[[], Group]) -> None:
        self._make = make
        self._group: Group | None = None
        self._lock = threading.RLock()
        self._count = 0
        self._dropped: deque[tuple[Group, int]] = deque()
        self._importable: dict[tuple[Group, str], bool] = {}

    def group(self) -> Group:
        """The running group; a new one is started if there is none."""
        with self._lock:
            if self._group is None or self._group.ended:
                self._group = self._make()
                self._importable.clear()
            return self._group

    def number(self) -> int:
        """A number for one more model."""
        with self._lock:
            self._count += 1
            return self._count

    def call(self, group: Group, name: str, *arguments: Any) -> list[Any]:
        """What each rank of a group answers. Raises WorkerDiedError where it is at work no more."""
        with self._lock:
            while self._dropped and not group.ended:
                its, number = self._dropped.popleft()
                if not its.ended:
                    its.call("drop", [number])
            return group.call(name, *arguments)

    def forget_with(self, owner: object, group: Group, number: int) -> weakref.finalize[..., Any]:
        """Have the ranks forget a model once `owner` is garbage: with the next call, since that may come at any moment."""
        finalizer = weakref.finalize(owner, self.forget, group, number)
        finalizer.atexit = False
        return finalizer

    def forget(self, group: Group, number: int) -> None:
        """Have the ranks forget a model, with the next call."""
        self._dropped.append((group, number))

    def know(self, group: Group, loss: SentLoss) -> bool:
        """Whether every rank can import the modules of a loss.

        Several ranks refuse a loss that turns out to hold parameters; one alone would train its own copy of them, so that it
        gets lossbook's losses only.
        """
        if group.size == 1 and not all(part.module.partition(".")[0] == _PACKAGE for part in loss.parts):
            return False
        return all(self._can_import(group, part.module) for part in loss.parts)

    def _can_import(self, group: Group, module: str) -> bool:
        if module.partition(".")[0] == _PACKAGE:
            return True
        key = (group, module)
        if key not in self._importable:
            importlib.import_module(module)
            self._importable[key] = all(self.call(group, "imports", module))
        return self._importable[key]
