"""Futures of this API: what a call returns before it has run.

`APIFuture` is the base, which other code may inherit. `CallFuture` is a call of a lossbook client, whose value is converted
to Tinker's types and whose failure to Tinker's exceptions; `DoneFuture` is a value that is there at once.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .errors import as_tinker_error

if TYPE_CHECKING:
    from ...trainer.clients.futures import Future

S = TypeVar("S")
T = TypeVar("T")


class APIFuture(ABC, Generic[T]):
    """The result of a call that may not have run yet. Get it with `result()` or `await`."""

    @abstractmethod
    def result(self, timeout: float | None = None) -> T:
        """The value; waits for it, at most `timeout` seconds (then TimeoutError)."""

    @abstractmethod
    async def result_async(self, timeout: float | None = None) -> T:
        """As `result`, without blocking the event loop."""

    @abstractmethod
    def future(self) -> concurrent.futures.Future[T]:
        """The same as a standard future, for `concurrent.futures.wait` and done callbacks."""

    async def coroutine(self) -> T:
        """The same as a coroutine, for `asyncio.create_task`."""
        return await self.result_async()

    def __await__(self) -> Generator[Any, None, T]:
        return self.result_async().__await__()


class AwaitableConcurrentFuture(APIFuture[T]):
    """A standard future that can be awaited."""

    def __init__(self, future: concurrent.futures.Future[T]) -> None:
        self._future = future

    def result(self, timeout: float | None = None) -> T:
        """The value; waits for it, at most `timeout` seconds (then TimeoutError)."""
        return self._future.result(timeout)

    async def result_async(self, timeout: float | None = None) -> T:
        """As `result`, without blocking the event loop."""
        async with asyncio.timeout(timeout):
            return await asyncio.wrap_future(self._future)

    def future(self) -> concurrent.futures.Future[T]:
        """The future itself."""
        return self._future


class DoneFuture(AwaitableConcurrentFuture[T]):
    """A value that is there at once."""

    def __init__(self, value: T) -> None:
        super().__init__(concurrent.futures.Future())
        self._future.set_result(value)


class CallFuture(APIFuture[T], Generic[S, T]):
    """A call of a lossbook client: `convert` makes Tinker's value of lossbook's, once.

    Raises what `as_tinker_error` makes of the call's failure. A timeout or a cancelled `await` does not end the call.
    """

    def __init__(self, call: Future[S], convert: Callable[[S], T]) -> None:
        self._call = call
        self._convert = convert
        self._values: list[T] = []
        self._lock = threading.Lock()

    def result(self, timeout: float | None = None) -> T:
        """The value; waits for it, at most `timeout` seconds (then TimeoutError, and the call goes on)."""
        self._call.exception(timeout)
        return self._outcome()

    async def result_async(self, timeout: float | None = None) -> T:
        """As `result`, without blocking the event loop."""
        try:
            await self._call.result_async(timeout)
        except Exception:
            if not self._call.done():  # what ended is the wait
                raise
        return self._outcome()

    def future(self) -> concurrent.futures.Future[T]:
        """The same as a standard future. Cancelling it withdraws a call that has not begun, where nothing builds on it."""
        call = self._call.future()
        standard: _StandardFuture[T] = _StandardFuture(call.cancel)
        call.add_done_callback(lambda _: standard.settle(self._outcome))
        return standard

    def __repr__(self) -> str:
        return repr(self._call)

    def _outcome(self) -> T:
        """The value of a call that has ended, or its exception."""
        try:
            value = self._call.result()
        except Exception as error:
            failed = as_tinker_error(error, self._call.label)
            try:
                if failed is error:
                    raise
                raise failed from error
            finally:
                del failed, self  # as in `trainer/clients/futures.py`
        with self._lock:
            if not self._values:
                self._values.append(self._convert(value))
        return self._values[0]


class _StandardFuture(concurrent.futures.Future[T]):
    """A call as a standard future; `withdraw` asks whether it can still be taken back."""

    def __init__(self, withdraw: Callable[[], bool]) -> None:
        super().__init__()
        self._withdraw = withdraw

    def cancel(self) -> bool:
        """Withdraw the call; False where that is too late."""
        return self._withdraw()

    def settle(self, outcome: Callable[[], T]) -> None:
        """End as the call has."""
        try:
            self.set_result(outcome())
        except concurrent.futures.CancelledError:
            super().cancel()
            self.set_running_or_notify_cancel()
        except BaseException as error:
            self.set_exception(error)
