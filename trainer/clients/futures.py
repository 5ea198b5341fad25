"""Calls that run one after the other in a background thread, and futures whose failures cannot go unnoticed.

The rules, per client, but for those of fixed weights (`independent`):

* Calls run strictly in the order in which they were submitted, in one thread per service.
* A call that was submitted before an earlier one had failed does not run: an `optim_step` queued behind a failed
  `forward_backward` must not step. It fails with the same exception.
* A failure that has not been looked at is raised by the client's next call. Without a next call it is reported when the
  client and its futures are garbage collected, or when the interpreter exits.

Looking means `result()`, `exception()` or `await`; looking at a call that was held back counts for the failed one.

A traceback holds its frames, and they hold tensors, locks and the like. So frames here through which a failure passes let go of
it (`del`): it ends when it was handled, not at some later garbage collection.

Each call begins in torch's default modes (gradients on, no autocast), not in those of the submitting thread, and leaves no
others behind: see `modes`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import threading
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from ...datums.display import one_line
from .failures import Failure
from .modes import job_modes
from .worker import Worker

T = TypeVar("T")

__all__ = ["Calls", "Future", "Worker"]


class Calls:
    """The calls of one client, in order: `name` is for messages, `worker` is shared by the clients of a service."""

    def __init__(self, name: str, worker: Worker) -> None:
        self.name = name
        self.worker = worker
        self._lock = threading.Lock()
        self._count = 0
        self._waiting: dict[Future[Any], Callable[[], Any]] = {}  # submitted and not begun, in order
        self._unseen: Failure | None = None  # at most one: while it is unseen nothing can be submitted

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
                self._waiting[future] = fn
                try:
                    self.worker.submit(functools.partial(self._execute, future), future.label)
                except RuntimeError as error:  # the interpreter shuts down, or no thread can be started
                    self._waiting.pop(future, None)
                    future._failure = Failure(future.label, error, seen=True)  # in case it is in the queue nevertheless
                    raise
                return future
        self.see(failure)
        try:
            failure.raise_it(f"{what} was not started: {failure.label} had failed before, and nobody had looked at it.")
        finally:
            del failure

    def withdraw(self, future: Future[Any]) -> bool:
        """Take back a call that has not begun, if this client's calls do not build on each other: these do."""
        return False

    def see(self, failure: Failure) -> None:
        """Note that a failure has reached the user."""
        with self._lock:
            failure.seen = True
            if self._unseen is failure:
                self._unseen = None

    def _execute(self, future: Future[Any]) -> None:
        with self._lock:
            fn = self._waiting.pop(future, None)
        try:
            if fn is not None and future._failure is None:
                self._settle(future, *self._outcome(fn))
            else:
                future._finish()
        finally:
            del future

    def _outcome(self, fn: Callable[[], T]) -> tuple[T | None, BaseException | None]:
        """The return value of `fn`, or its exception, also KeyboardInterrupt and SystemExit: the thread must survive."""
        try:
            with job_modes(deterministic=self.worker.deterministic):
                return fn(), None
        except BaseException as error:
            if error.__traceback__ is not None:
                error.__traceback__ = error.__traceback__.tb_next  # without this frame
            return None, error

    def _settle(self, future: Future[Any], value: Any, error: BaseException | None) -> None:
        """Give a future its value, or its exception, and wake who waits for it."""
        if error is None:
            future._value = value
        else:
            self._fail(future, error)
        future._finish()

    def _fail(self, future: Future[Any], error: BaseException) -> None:
        failure = Failure(future.label, error)
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
        self._failure: Failure | None = None
        self._calls = calls
        # Signals the end only: a StopIteration as outcome cannot be set on an asyncio future. Marked
        # as running, so that cancelling an `await` (asyncio.wait_for) cannot cancel the call.
        self._finished: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._finished.set_running_or_notify_cancel()

    def result(self, timeout: float | None = None) -> T:
        """The call's return value; waits for it, at most `timeout` seconds.

        Raises what the call raised, or TimeoutError; the call itself goes on after a timeout or a Ctrl-C.
        """
        try:
            self._wait(timeout)
            return self._look()
        finally:
            del self

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
        try:
            if not self.done():
                with self._calls.worker.awaited(self.label):
                    try:
                        await asyncio.wait_for(asyncio.wrap_future(self._finished), timeout)
                    except TimeoutError:
                        raise self._timed_out(timeout) from None
            return self._look()
        finally:
            del self

    def __await__(self) -> Generator[Any, None, T]:
        return self.result_async().__await__()

    async def coroutine(self) -> T:
        """The wait for the result as a coroutine, which `asyncio.create_task` takes."""
        return await self.result_async()

    def cancel(self) -> bool:
        """Withdraw a call that has not begun; False where it has, or where later calls may build on it, as in training.

        Looking at a withdrawn call raises `concurrent.futures.CancelledError`.
        """
        return self._calls.withdraw(self)

    def cancelled(self) -> bool:
        """Whether the call was withdrawn."""
        return self._failure is not None and isinstance(self._failure.exception, concurrent.futures.CancelledError)

    def future(self) -> concurrent.futures.Future[T]:
        """The same for code that takes standard futures, for `wait`, `as_completed` or `add_done_callback`.

        Looking at it is looking at this one, and cancelling it too. Callbacks run on the thread of the call, where nothing
        can be waited for.
        """
        return _StandardFuture(self)

    def __repr__(self) -> str:
        ended = "finished" if self._failure is None else "cancelled" if self.cancelled() else "failed"
        if ended == "failed" and self._failure is not None:
            ended = f"failed with {type(self._failure.exception).__name__}"
        return one_line(f"<Future of {self.label}: {ended if self.done() else 'pending'}>")

    if not TYPE_CHECKING:  # a type checker knows what a Future has

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"a Future has no {name!r}. {self._how_to_wait(f'.{name}')}", name=name, obj=self)

        def __getitem__(self, key: Any) -> Any:
            raise TypeError(f"a Future is not the result itself. {self._how_to_wait(f'[{key!r}]')}")

    def _how_to_wait(self, access: str) -> str:
        return (
            f"This is {vars(self).get('label', 'a call')}, which may not have run: future.result(){access} waits for it"
        )

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
        behind = f"{self.label} did not run: it was queued behind {failure.label}, which failed."
        try:
            failure.raise_it("" if failure.label == self.label else behind)
        finally:
            del self, failure


class _StandardFuture(concurrent.futures.Future[T]):
    """A call as the standard library's futures are. It is pending until the call ends: only the call knows how far it is."""

    def __init__(self, call: Future[T]) -> None:
        super().__init__()
        self._call = call
        call._finished.add_done_callback(self._settle)

    def result(self, timeout: float | None = None) -> T:
        return self._call.result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        error = self._call.exception(timeout)
        if self._call.cancelled() and error is not None:
            raise error
        return error

    def cancel(self) -> bool:
        return self._call.cancel() or self.cancelled()

    def _settle(self, finished: concurrent.futures.Future[None]) -> None:
        if self._call.cancelled():
            super().cancel()
            self.set_running_or_notify_cancel()
        elif self._call._failure is not None:
            self.set_exception(self._call._failure.exception)
        else:
            self.set_result(cast(T, self._call._value))
