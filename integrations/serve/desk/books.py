"""The ledger's thread: what is written down is written in the order in which it was said."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from ..refusals import Refused

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds between two tries to write what must be written.
RETRY_SECONDS = 0.5
_log = logging.getLogger(__name__)


class Books:
    """Calls of a ledger's methods, one after the other."""

    def __init__(self) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "lossbook-ledger")

    def do(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[T]:
        """Queue a call; returns its future. Raises Refused(503) after the end."""
        try:
            return self._thread.submit(method, *args, **kwargs)
        except RuntimeError:
            raise Refused(503, "the server has stopped", retry_after=5) from None

    async def ask(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The answer of a call. It is made even where nobody waits for it any more."""
        return await asyncio.shield(asyncio.wrap_future(self.do(method, *args, **kwargs)))

    def close(self) -> None:
        """End the thread after what is queued."""
        self._thread.shutdown(wait=True)


class Outbox:
    """What must be written, in order, each until it is: answers whose futures are waited for. Belongs to one event loop."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._waiting: asyncio.Queue[tuple[Callable[[], object], Callable[[], None]]] = asyncio.Queue()
        self._is_closing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._go())

    def put(self, write: Callable[[], object], written: Callable[[], None]) -> None:
        """Write this, then call `written`."""
        self._waiting.put_nowait((write, written))

    async def close(self) -> None:
        """Write what is left, as far as the database takes it at once."""
        self._is_closing = True
        await self._waiting.join()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _go(self) -> None:
        while True:
            write, written = await self._waiting.get()
            try:
                if await self._write(write):
                    written()
            except Exception:
                _log.exception("an answer could not be written")
            finally:
                self._waiting.task_done()

    async def _write(self, write: Callable[[], object]) -> bool:
        """Whether it is written; not so where the database does not answer while the desk closes: nobody hears of it then."""
        while True:
            try:
                await self._books.ask(write)
                return True
            except Refused as refused:
                _log.warning("the ledger does not answer: %s", refused.message)
                if self._is_closing:
                    return False
                await asyncio.sleep(RETRY_SECONDS)
