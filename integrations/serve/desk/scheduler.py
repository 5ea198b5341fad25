"""Takes requests from the queue in their order and has them run, one turn after the other, in the engine's thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Protocol, TypeVar

from ..operations import Operation
from ..refusals import Failed
from .failures import failed_answer, failure_of
from .order import Lost, Queue
from .runner import Done

T = TypeVar("T")

#: Seconds between two looks at what nobody asks for any more, and the longest wait for what is missing.
LOOK_SECONDS = 1.0
_log = logging.getLogger(__name__)


class Reports(Protocol):
    """Who is told what has ended. Called on the event loop; may not raise."""

    def begun(self, batch: Sequence[Operation]) -> None:
        """These are about to run."""
        ...

    def ended(self, done: Done, seconds: float) -> None:
        """This has run, for so long."""
        ...

    def lost(self, operation: Operation, failed: Failed) -> None:
        """This will not run."""
        ...


class Scheduler:
    """Runs what is in a queue. Belongs to one event loop; only `run` is called in the engine's thread.

    run       runs the requests of a turn; gives an end for each
    upkeep    what is to be done between turns, or None; called on the event loop, done in the engine's thread
    seconds   that a turn may take before the engine counts as hanging
    """

    def __init__(
        self,
        queue: Queue,
        run: Callable[[Sequence[Operation]], list[Done]],
        reports: Reports,
        *,
        upkeep: Callable[[], Callable[[], None] | None] = lambda: None,
        seconds: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue, self.running = queue, list[Operation]()
        self.trouble: str | None = None
        self._run, self._reports, self._upkeep, self._seconds, self._clock = run, reports, upkeep, seconds, clock
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._engine = _Thread("lossbook-engine")
        self._stopping = False
        self._turns: asyncio.Task[None] | None = None
        self._gaps: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to run."""
        self._turns = asyncio.create_task(self._for_good(self._take_turns()))
        self._gaps = asyncio.create_task(self._for_good(self._watch_gaps()))

    def add(self, operation: Operation) -> None:
        """Take a request."""
        self._lose(self.queue.add(operation, self._clock()))
        self._wake()

    def used_up(self, owner: str, scope: str, number: int) -> None:
        """Note that a request of this number of a model was refused."""
        self.queue.used_up(owner, scope, number, self._clock())
        self._wake()

    def looked(self, request_id: str) -> None:
        """Note that a client has been told of a failure."""
        self.queue.looked(request_id)

    def close_scopes(self, scopes: Sequence[str], why: Failed) -> None:
        """Fail what waits for models, samplers or sessions that end."""
        self._lose(self.queue.close(scopes, why))

    async def in_engine(self, call: Callable[[], T]) -> T:
        """The result of a call in the engine's thread, after what runs."""
        return await asyncio.shield(asyncio.wrap_future(self._engine.submit(call)))

    def soon(self, job: Callable[[], None]) -> None:
        """Have something done in the engine's thread, after what runs."""
        self._engine.submit(lambda: _logged(job))

    async def stop(self, grace: float, why: Failed) -> None:
        """Run what is ready for `grace` seconds more, then fail what is left. What runs then is left alone."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while self.trouble is None and (self.running or self._is_ready()):
                    self._idle.clear()
                    await self._idle.wait()
        self._stopping = True
        self._lose(self.queue.close_all(why))
        for operation in self.running:  # it goes on, and nobody waits for it
            self._reports.lost(operation, why)
        is_free = not self.running
        for task in (self._turns, self._gaps):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self.trouble = self.trouble or (None if is_free else why.message)

    def close(self) -> None:
        """End the engine's thread after what it runs."""
        self._engine.close()

    # --- within -------------------------------------------------------------------------------------------------------

    async def _for_good(self, work: Coroutine[None, None, None]) -> None:
        """Do this as long as the server runs. Where it breaks, fail what waits for it: nothing waits for what runs no more."""
        try:
            await work
        except Exception:
            _log.exception("the scheduler has broken")
            self.trouble = self.trouble or "what hands requests to the engine has broken: restart the server"
            failed = Failed(self.trouble, "server")
            left = [(operation, failed) for operation in self.running] + self.queue.close_all(failed)
            self.running = []
            for one in left:
                with contextlib.suppress(Exception):
                    self._lose([one])
            self._idle.set()

    async def _take_turns(self) -> None:
        while self.trouble is None and not self._stopping:
            self._work.clear()
            batch = self.queue.take(self._clock())
            if batch:
                await self._turn(batch)
            else:
                self._idle.set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._work.wait()
            if (job := self._upkeep()) is not None:
                await self._wait_for(self._engine.submit(lambda job=job: _logged(job)))
            self._idle.set()
        if self.trouble is not None:
            self._lose(self.queue.close_all(Failed(self.trouble, "server")))
            self._idle.set()

    async def _turn(self, batch: list[Operation]) -> None:
        self.running, begun = batch, self._clock()
        self._reports.begun(batch)
        ended = await self._wait_for(self._engine.submit(lambda: self._ran(batch)))
        seconds = self._clock() - begun
        if ended is None:
            self.running = []
            for operation in batch:
                self._reports.lost(operation, Failed(str(self.trouble), "server"))
            return
        only = ended[0].failed if len(ended) == 1 else None
        lost = self.queue.ended(batch, seconds, self._clock(), only)
        self.running = []
        for done in ended:
            self._reports.ended(done, seconds)
        self._lose(lost)

    def _ran(self, batch: list[Operation]) -> list[Done]:
        """The ends of a turn; in the engine's thread."""
        try:
            return self._run(batch)
        except BaseException as error:
            failed = [failure_of(error, operation, ()) for operation in batch]
            return [Done(one, failed_answer(why), why) for one, why in zip(batch, failed, strict=True)]

    async def _wait_for(self, future: concurrent.futures.Future[T]) -> T | None:
        """What a call in the engine's thread gives; None where it hangs, and then nothing runs any more."""
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.shield(asyncio.wrap_future(future))
        except TimeoutError:
            self.trouble = f"the engine has hung for {self._seconds:.0f} s: restart the server"
            _log.error("%s", self.trouble)
        return None

    async def _watch_gaps(self) -> None:
        """Fail what has waited too long for a request that is missing, also while something else runs."""
        while True:
            await asyncio.sleep(min(max(self.queue.next_gap() - self._clock(), 0.01), LOOK_SECONDS))
            self._lose(self.queue.overdue(self._clock()))

    def _is_ready(self) -> bool:
        return bool(len(self.queue)) and self.queue.is_ready()

    def _wake(self) -> None:
        if self.trouble is None:
            self._work.set()
        else:
            self._lose(self.queue.close_all(Failed(self.trouble, "server")))

    def _lose(self, lost: list[Lost]) -> None:
        for operation, failed in lost:
            self._reports.lost(operation, failed)


def _logged(job: Callable[[], None]) -> None:
    try:
        job()
    except Exception:
        _log.exception("what is done between turns failed")


class _Thread:
    """One thread that runs calls in order. It is a daemon: one that hangs does not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._calls: list[tuple[concurrent.futures.Future, Callable[[], object]]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._go, name=name, daemon=True)

    def submit(self, call: Callable[[], T]) -> concurrent.futures.Future[T]:
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()
        with self._changed:
            if self._thread.ident is None:
                self._thread.start()
            self._calls.append((future, call))
            self._changed.notify()
        return future

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _go(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._calls or self._closed)
                if not self._calls:
                    return
                future, call = self._calls.pop(0)
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            del future, call
