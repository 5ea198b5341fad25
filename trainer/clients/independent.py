"""Calls of a client that do not build on each other, such as samples, and that run together where they wait together.

Beyond the rules of `futures`:

* A failed call fails alone: no other call of the client is held back or refused because of it.
* A call that has not begun can be withdrawn.
* When the turn of a call comes, those that wait behind it and may run with it do, and have their results when it has.
"""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, Protocol, Self, TypeVar

from .failures import Failure
from .futures import Calls, Future

T = TypeVar("T")


class Work(Protocol[T]):
    """What a call does, alone or together with others."""

    @property
    def key(self) -> Hashable:
        """Work of equal keys may be done together; None: alone. Asked when the call's turn comes, or another's."""
        ...

    @property
    def size(self) -> int:
        """How much of `IndependentCalls.most` it takes."""
        ...

    def run(self, others: Sequence[Self]) -> list[T]:
        """Do it, and what others of the same key have to do: the result of each, its own first."""
        ...


class IndependentCalls(Calls):
    """The calls of a client of fixed weights. most: gives the size of all work that is done together."""

    def __init__(self, name: str, worker: Any, most: Callable[[], int]) -> None:
        super().__init__(name, worker)
        self._most = most

    def submit_work(self, label: str, work: Work[T]) -> Future[T]:
        """Queue work that may be done together with other work. Raises as `submit` does."""
        return self.submit(label, _Alone(work))

    def withdraw(self, future: Future[Any]) -> bool:
        """Take back a call that has not begun."""
        with self._lock:
            if self._waiting.pop(future, None) is None:
                return False
        error = concurrent.futures.CancelledError(f"{future.label} was withdrawn before it began")
        future._failure = Failure(future.label, error, seen=True)
        future._finish()
        return True

    def _execute(self, future: Future[Any]) -> None:
        with self._lock:
            call = self._waiting.pop(future, None)
        if call is None:  # it was withdrawn, or has run with an earlier one
            return
        others = self._others(call.work) if isinstance(call, _Alone) and self.worker.joins else {}
        try:
            if not (others and self._run_together(future, call, others)):
                self._settle(future, *self._outcome(call))
                for one, work in others.items():  # each alone: what failed together may fail because of one
                    self._settle(one, *self._outcome(_Alone(work)))
        finally:
            others.clear()
            one = None
            del future

    def _run_together(self, future: Future[Any], call: Any, others: dict[Future[Any], Work[Any]]) -> bool:
        """Whether all of them have ended: with their values, or with Ctrl-C and the like."""
        values, error = self._outcome(functools.partial(call.work.run, list(others.values())))
        try:
            if values is None and isinstance(error, Exception):
                return False
            for one, value in zip((future, *others), values or [None] * (1 + len(others)), strict=True):
                self._settle(one, value, error)
            return True
        finally:
            one = error = None
            del future

    def _others(self, work: Work[Any]) -> dict[Future[Any], Work[Any]]:
        """Waiting calls that run now too, in their order, no longer waiting."""
        if work.key is None:
            return {}
        with self._lock:
            waiting = list(self._waiting.items())
        room, chosen = self._most() - work.size, {}
        for future, call in waiting:
            if room <= 0:
                break
            if isinstance(call, _Alone) and call.work.key == work.key and call.work.size <= room:
                room -= call.work.size
                chosen[future] = call.work
        with self._lock:  # some may have been withdrawn by now
            return {future: one for future, one in chosen.items() if self._waiting.pop(future, None) is not None}

    def _fail(self, future: Future[Any], error: BaseException) -> None:
        future._failure = Failure(future.label, error)


class _Alone(Generic[T]):
    """Work as a function without arguments."""

    def __init__(self, work: Work[T]) -> None:
        self.work = work

    def __call__(self) -> T:
        return self.work.run([])[0]
