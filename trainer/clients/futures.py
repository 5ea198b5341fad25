"""Calls that run one after the other in a background thread, and futures whose failures cannot go unnoticed.

The rules, per client:

* Calls run strictly in the order in which they were submitted, in one thread per service.
* A call that was submitted before an earlier one had failed does not run: an `optim_step` queued behind a failed
  `forward_backward` must not step. It fails with the same exception.
* A failure that has not been looked at is raised by the client's next call. Without a next call it is reported when the
  client and its futures are garbage collected, or when the interpreter exits.

Looking means `result()`, `exception()` or `await`; looking at a call that was held back counts for the failed one.
Each call begins in torch's default modes (gradients on, no autocast), not in those of the submitting thread, and leaves no
others behind: see `modes`.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import os
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Generator
from typing import Any, Generic, NoReturn, TypeVar, cast

from ...datums.errors import UnseenFailureWarning
from .modes import job_modes
from .worker import Worker

T = TypeVar("T")

__all__ = ["Calls", "Future", "Worker"]

#: Calls that the report of a failure names; of the others it gives the number.
_NAMED = 3


class Calls:
    """The calls of one client, in order: `name` is for messages, `worker` is shared by the clients of a service."""

    def __init__(self, name: str, worker: Worker) -> None:
        self.name = name
        self.worker = worker
        self._lock = threading.Lock()
        self._count = 0
        self._waiting: dict[Future[Any], None] = {}  # submitted and not begun, in order
        self._unseen: _Failure | None = None  # at most one: while it is unseen nothing can be submitted

    def submit(self, label: str, fn: Callable[[], T]) -> Future[T]:
        """Queue `fn` behind this client's earlier calls.

        Raises an earlier call's exception, the original object, if nobody has looked at it yet; `fn` is then not
        queued. Raises WorkerError inside an operation of the same service, and in a forked child.
        """
        what = f"{self.name}.{label}"
        self.worker.check_can_wait(what)
        with self._lock:
            failure = self._unseen
            if failure is None:
                self._count += 1
                future: Future[T] = Future(f"{what} (call {self._count})", self)
                self._waiting[future] = None
                try:
                    self.worker.submit(functools.partial(self._execute, future, fn), future.label)
                except RuntimeError as error:  # the interpreter shuts down, or no thread can be started
                    self._waiting.pop(future, None)
                    future._failure = _Failure(
                        future.label, error, seen=True
                    )  # in case it is in the queue nevertheless
                    raise
                return future
        self.see(failure)
        failure.raise_it(f"{what} was not started: {failure.label} had failed before, and nobody had looked at it.")

    def see(self, failure: _Failure) -> None:
        """Note that a failure has reached the user."""
        with self._lock:
            failure.seen = True
            if self._unseen is failure:
                self._unseen = None

    def _execute(self, future: Future[T], fn: Callable[[], T]) -> None:
        with self._lock:
            self._waiting.pop(future, None)
        if future._failure is None:
            value, error = _outcome(fn, deterministic=self.worker.deterministic)
            if error is not None:
                self._fail(future, error)
            else:
                future._value = value
        future._finish()

    def _fail(self, future: Future[Any], error: BaseException) -> None:
        failure = _Failure(future.label, error)
        with self._lock:
            future._failure = self._unseen = failure
            for waiting in self._waiting:
                waiting._failure = failure
                failure.held_back.append(waiting.label)


class Future(Generic[T]):
    """The result of a call that may not have run yet. Get it with `result()` or `await`."""

    def __init__(self, label: str, calls: Calls) -> None:
        self.label = label
        self._value: T | None = None
        self._failure: _Failure | None = None
        self._calls = calls
        # Signals the end only: a StopIteration as outcome cannot be set on an asyncio future. Marked
        # as running, so that cancelling an `await` (asyncio.wait_for) cannot cancel the call.
        self._finished: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._finished.set_running_or_notify_cancel()

    def result(self, timeout: float | None = None) -> T:
        """The call's return value; waits for it, at most `timeout` seconds.

        Raises what the call raised, or TimeoutError; the call itself goes on after a timeout or a Ctrl-C.
        """
        self._wait(timeout)
        return self._look()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The call's exception, or None; waits for it, at most `timeout` seconds (then TimeoutError)."""
        self._wait(timeout)
        if self._failure is None:
            return None
        self._calls.see(self._failure)
        return self._failure.exception

    def done(self) -> bool:
        """Whether the call has ended, well or not."""
        return self._finished.done()

    async def result_async(self, timeout: float | None = None) -> T:
        """As `result`, without blocking the event loop."""
        if not self.done():
            with self._calls.worker.awaited(self.label):
                try:
                    await asyncio.wait_for(asyncio.wrap_future(self._finished), timeout)
                except TimeoutError:
                    raise self._timed_out(timeout) from None
        return self._look()

    def __await__(self) -> Generator[Any, None, T]:
        return self.result_async().__await__()

    def __repr__(self) -> str:
        state = "pending" if not self.done() else "finished" if self._failure is None else "failed"
        return f"<Future of {self.label}: {state}>"

    def _finish(self) -> None:
        """Wake the waiting threads; value or failure is set."""
        self._finished.set_result(None)

    def _wait(self, timeout: float | None) -> None:
        if self.done():
            return
        with self._calls.worker.awaited(self.label):
            try:
                self._finished.result(timeout)
            except TimeoutError:
                raise self._timed_out(timeout) from None

    def _timed_out(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"{self.label} has not ended after {timeout} s. It goes on; call result() again to wait")

    def _look(self) -> T:
        failure = self._failure
        if failure is None:
            return cast(T, self._value)
        self._calls.see(failure)
        if failure.label == self.label:
            failure.raise_it()
        failure.raise_it(f"{self.label} did not run: it was queued behind {failure.label}, which failed.")


class _Failure:
    """A call's exception, and whether it has been looked at."""

    def __init__(self, label: str, exception: BaseException, *, seen: bool = False) -> None:
        self.label = label
        self.exception = exception
        self.held_back: list[str] = []
        self.seen = seen
        self._note = ""
        self._traceback = exception.__traceback__
        self._process = os.getpid()
        _failures.add(self)

    def raise_it(self, note: str = "") -> NoReturn:
        """Raise the original exception with its original traceback, however often it was raised before.

        The note replaces the one of the time before: ten thousand calls behind a failure make one line, too.
        """
        notes = getattr(self.exception, "__notes__", [])
        if self._note in notes:
            notes.remove(self._note)
        if note:
            self.exception.add_note(note)
        self._note = note
        raise self.exception.with_traceback(self._traceback)

    def report(self) -> str:
        """The message for a failure that was not looked at, with the traceback."""
        more = f" and {len(self.held_back) - _NAMED} others" if len(self.held_back) > _NAMED else ""
        held_back = f" Held back because of it: {', '.join(self.held_back[:_NAMED])}{more}." if self.held_back else ""
        details = "".join(traceback.format_exception(self.exception))
        return f"{self.label} failed and nobody looked at its future.{held_back} It raised:\n{details}"

    def is_due(self) -> bool:
        """Whether it has yet to be reported, by this process."""
        return not self.seen and self._process == os.getpid()

    def __del__(self) -> None:
        if self.is_due():
            warnings.warn(self.report(), UnseenFailureWarning, stacklevel=1)


_failures: weakref.WeakSet[_Failure] = weakref.WeakSet()


@atexit.register
def _report_unseen_failures() -> None:
    """At interpreter exit, after the workers have finished: print the failures that were not looked at."""
    for failure in [failure for failure in _failures if failure.is_due()]:
        failure.seen = True
        if sys.stderr is not None:
            print(f"lossbook: {failure.report()}", file=sys.stderr, flush=True)


def _outcome(fn: Callable[[], T], *, deterministic: bool) -> tuple[T | None, BaseException | None]:
    """The return value of `fn`, or its exception, also KeyboardInterrupt and SystemExit: the thread must survive."""
    try:
        with job_modes(deterministic=deterministic):
            return fn(), None
    except BaseException as error:
        ours = error.__traceback__
        return None, error.with_traceback(ours.tb_next if ours is not None else None)
