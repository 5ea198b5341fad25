"""The thread of a service that runs its calls, and the waits that would never end."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...datums.errors import WorkerError

#: Guards what all workers wait for.
_waiting = threading.Lock()
#: `here.worker` is the worker whose thread this is.
_here = threading.local()


class Worker:
    """One background thread that runs jobs in submission order; it starts with the first one.

    At interpreter exit the queued jobs are finished first. Dropping the worker ends its thread once the queue is
    empty. A forked child does not inherit the thread, so there the worker refuses to work.

    deterministic  calls run with torch's deterministic algorithms
    joins          calls that may run together do, such as samples, where several wait
    """

    def __init__(self, name: str = "lossbook", *, deterministic: bool = False, joins: bool = True) -> None:
        self._executor = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self.deterministic, self.joins = deterministic, joins
        self._process: int | None = None
        self._thread: int | None = None
        self._job = ""
        self._awaits: list[tuple[Worker, str]] = []  # calls of other workers that the job waits for

    def submit(self, job: Callable[[], None], label: str = "a job") -> None:
        """Queue a job, which must not raise. Raises RuntimeError while the interpreter shuts down."""
        self._process = os.getpid()
        self._executor.submit(self._run, [job], label)

    def check_can_wait(self, what: str) -> None:
        """Raise WorkerError where waiting for this worker would never end."""
        if self._process is not None and self._process != os.getpid():
            raise WorkerError(
                f"{what}: this client was used before the process forked, and the thread that ran its calls stayed in the "
                "parent. Start processes with 'spawn' (multiprocessing.get_context('spawn')) and create the ServiceClient "
                "in each: torch's own threads do not survive a fork either"
            )
        if self._thread == threading.get_ident():
            raise WorkerError(
                f"{what} was called from inside an operation of the same service (in a custom loss?). Operations run "
                "one at a time, so it would wait for itself for ever. Call it before or after, and pass in its result"
            )

    @contextmanager
    def awaited(self, label: str) -> Iterator[None]:
        """Around a wait for a call of this worker. Raises WorkerError where it would never end.

        Of several services whose jobs wait for each other, the job that closes the ring gets the error.
        """
        self.check_can_wait(f"waiting for {label}")
        waiter: Worker | None = getattr(_here, "worker", None)
        if waiter is None:
            yield
            return
        with _waiting:
            if ring := _route(self, waiter):
                raise WorkerError(_ring_message(waiter, label, ring))
            waiter._awaits.append((self, label))
        try:
            yield
        finally:
            with _waiting:
                waiter._awaits.remove((self, label))

    def _run(self, jobs: list[Callable[[], None]], label: str) -> None:
        """Run the one job of the list, which is empty then: the frames of a failure's traceback must not keep the job."""
        self._thread = threading.get_ident()
        self._job, _here.worker = label, self
        try:
            jobs.pop()()
        finally:
            del _here.worker  # a thread must not keep its worker: dropping that ends the thread


def _route(start: Worker, end: Worker) -> list[tuple[Worker, str]]:
    """Who waits for which call, from `start` on until `end` is waited for; empty where it is not."""
    for worker, label in start._awaits:
        if worker is end:
            return [(start, label)]
        if rest := _route(worker, end):
            return [(start, label), *rest]
    return []


def _ring_message(waiter: Worker, label: str, ring: list[tuple[Worker, str]]) -> str:
    steps = "; ".join(f"{worker._job} runs there and waits for {awaited}" for worker, awaited in ring)
    return (
        f"{waiter._job} waits for {label}, which would never come: {steps}, which is behind {waiter._job}. Two services "
        "whose losses wait for each other never end: call one of them before, and pass in its result"
    )
