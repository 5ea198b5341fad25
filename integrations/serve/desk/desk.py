"""`Desk`: takes requests, runs them on models in their order, and keeps the answers. What HTTP says of it is `http/`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..ledger import Futures, Ledger
from ..operations import Answer, Operation
from ..refusals import Failed, Refused
from ..settings import ServeSettings
from ..status import Status
from .access import Access
from .books import Books, Outbox
from .models import Model, Models
from .order import Queue
from .overview import Overview
from .owners import Owners
from .runner import Runner
from .runner import sequence_ids as sequence_ids
from .samplers import Samplers
from .scheduler import Scheduler

#: Seconds between two looks at sessions without a heartbeat and at old results.
SWEEP_SECONDS = 30.0
#: Answers that are counted while nobody asks for them.
MOST_UNFETCHED = 100_000
_log = logging.getLogger(__name__)
_STOPPED = "the server was stopped before this ran: send it again when it runs again, under the next number"


class Desk(Access):
    """One per server process, on one event loop. All methods but `__init__` belong to the loop's thread.

    Methods raise Refused for what is answered by a status: 404 for ids that are not there or are another owner's, 429 over a
    limit, 503 while the server stops, where its engine is dead, or its database does not answer. What fails later fails the
    future: `retrieve` gives an Answer with `error`.
    """

    def __init__(self, settings: ServeSettings, ledger: Ledger) -> None:
        books, owners = Books(), Owners(settings)
        samplers = Samplers(settings, owners, ledger, books)
        models = Models(settings, owners, samplers, ledger, books)
        self._runner = Runner(settings, owners, models, samplers, ledger, books)
        self._futures = Futures(lambda owner, request_id: books.ask(ledger.answer, owner, request_id))
        #: Called with each request that has ended, its answer, and the seconds that it ran.
        self.observers: list[Callable[[Operation, Answer, float], None]] = []
        self._outbox = Outbox(books)
        self._is_closing = False
        self._sweeps: asyncio.Task[None] | None = None
        self._pending: set[asyncio.Task[Any]] = set()
        self._unfetched: dict[
            str, str
        ] = {}  # owner by id of each answer that nobody has asked for yet, the oldest first
        scheduler = Scheduler(
            Queue(settings.gap_seconds), self._runner.run, self, upkeep=self._upkeep, seconds=settings.engine_seconds
        )
        self._overview = Overview(settings, models, samplers, scheduler)
        super().__init__(settings, ledger, books, owners, models, samplers, scheduler)

    async def start(self) -> None:
        """Settle what a process that died left behind, and begin to run requests."""
        recovered = await self.books.ask(self.ledger.recover)
        for record in (*recovered.lost, *recovered.parked):
            await self._admit(record)
        self._outbox.start()
        self.scheduler.start()
        self._sweeps = asyncio.create_task(self._sweep())

    async def close(self, grace: float | None = None) -> None:
        """Take nothing more, end what runs within `grace` seconds, fail what waits, and save all models to the disk."""
        if self._is_closing:
            return
        self._is_closing = True
        if self._sweeps is not None:
            self._sweeps.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeps
        if self._pending:
            await asyncio.wait(self._pending)
        await self.scheduler.stop(self.settings.grace_seconds if grace is None else grace, Failed(_STOPPED, "server"))
        if self.scheduler.trouble is None:
            await self.scheduler.in_engine(lambda: self._park(list(self.models.all.values())))
        await self._outbox.close()
        with contextlib.suppress(Refused):
            await self.books.ask(self.ledger.prune)  # which failures clients have looked at
        await self.books.ask(self.ledger.close)
        self.scheduler.close()
        self.books.close()

    @property
    def trouble(self) -> str | None:
        """Why no requests run (the engine is dead or hangs, the server stops), in one line; None while all is well."""
        if self._is_closing:
            return "the server is being stopped"
        return self.scheduler.trouble or self._runner.engine_error

    # --- requests that get a promise ----------------------------------------------------------------------------------

    async def submit(self, operation: Operation) -> str:
        """Take a request; returns its id. A retry, of the same number and body, gives the id that it has.

        operation.payload: what `wire` read; of forward_backward and forward a ForwardBackward, of the others the request's model.
        Raises Refused(400) for the number of another request, Refused(404) for a model, session or sampler that is not there.
        """
        if (trouble := self.trouble) is not None:
            raise Refused(503, trouble, retry_after=5)
        task = asyncio.create_task(self._submitted(operation))  # it ends, also where its client has gone
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        return await asyncio.shield(task)

    async def used_up(self, owner: str, scope: str, counter: str, number: int) -> None:
        """Note that a request of this number was refused, so that those after it do not wait for it."""
        if counter != "seq" or self.models.known(owner, scope) is None:
            return
        await self.books.ask(self.ledger.used_up, owner, scope, counter, number)
        self.scheduler.used_up(owner, scope, number)

    async def retrieve(self, owner: str, request_id: str, hold: float) -> Answer | None:
        """The answer, waiting `hold` seconds for it at most; None where it is not there yet. Raises Refused(404)."""
        answer = await self._futures.wait(owner, request_id, hold)
        if answer is not None:
            self.ledger.fetched(request_id)
            self._unfetched.pop(request_id, None)
            if answer.error is not None:
                self.scheduler.looked(request_id)
        return answer

    def queue_state(self, request_id: str) -> str:
        """What to say of a request that has no answer yet: "active", or "paused_capacity" where nothing runs."""
        return "active" if self.trouble is None else "paused_capacity"

    def status(self, owner: str | None = None) -> Status:
        """What the status page shows an owner; of all owners where none is given."""
        state = "draining" if self._is_closing else "running" if self.trouble is None else "failed"
        sessions = {one.record.session_id for one in self.models.all.values() if owner in (None, one.record.owner)}
        unfetched = sum(owner in (None, of) for of in self._unfetched.values())
        return self._overview.status(owner, state, sessions=len(sessions), unfetched=unfetched)

    # --- what the scheduler reports -----------------------------------------------------------------------------------

    def begun(self, batch: Any) -> None:
        """Requests are about to run."""
        self.books.do(_quietly, self.ledger.begin, [operation.request_id for operation in batch])

    def ended(self, done: Any, seconds: float) -> None:
        """A request has run."""
        self._overview.ended(done)
        self._answer(done.operation, done.answer, seconds, done.changes)

    def lost(self, operation: Operation, failed: Failed) -> None:
        """A request will not run."""
        self._overview.failed(operation, failed)
        self._answer(operation, Answer(error=failed.message, category=failed.category), 0.0, {})

    # --- within -------------------------------------------------------------------------------------------------------

    async def _submitted(self, operation: Operation) -> str:
        known = await self.is_there(operation)
        submission = await self.books.ask(self.ledger.submit, operation, model_known=known)
        if submission.is_new:
            self._futures.expect(operation.owner, submission.request_id)
            self.scheduler.add(replace(operation, request_id=submission.request_id))
        return submission.request_id

    def _answer(self, operation: Operation, answer: Answer, seconds: float, changes: Mapping[str, Any]) -> None:
        def write() -> object:
            if not changes:
                return self.ledger.finish(operation.request_id, answer)
            now: Any = self.models.still(operation, changes)
            return self.ledger.finish(operation.request_id, answer, model_id=operation.scope, **now)

        def written() -> None:
            self._futures.resolve(operation.owner, operation.request_id, answer)
            self._unfetched[operation.request_id] = operation.owner
            if len(self._unfetched) > MOST_UNFETCHED:
                del self._unfetched[next(iter(self._unfetched))]
            for observer in self.observers:
                observer(operation, answer, seconds)

        self._outbox.put(write, written)

    def _upkeep(self) -> Callable[[], None] | None:
        """Parks models that nobody asks for."""
        idle = [
            one for one in self.models.idle(time.time()) if self.scheduler.queue.state(one.record.model_id) == "idle"
        ]
        if not idle:
            return None
        return lambda: self._park(idle)

    def _freed(self, session_id: str, scopes: list[str], *, rescue: bool) -> None:
        self._overview.forget(scopes)
        self._runner.end(session_id, rescue=rescue)
        self.models.ended.discard(session_id)

    def _park(self, models: list[Model]) -> None:
        for model in models:
            self.models.park_if_possible(model)

    def _is_busy(self, session_id: str) -> bool:
        """Whether something of a session waits or runs."""
        of = [one for one, model in self.models.all.items() if model.record.session_id == session_id]
        runs = any(one.scope.partition(":")[0] == session_id for one in self.scheduler.running)
        return runs or any(self.scheduler.queue.state(scope) != "idle" for scope in of)

    async def _sweep(self) -> None:
        """End sessions whose clients are gone, and drop old results."""
        while True:
            await asyncio.sleep(min(SWEEP_SECONDS, self.settings.session_seconds / 4))
            try:
                await self.books.ask(self.ledger.prune)
                await self.books.ask(self.ledger.forget_sessions)
                for session in await self.books.ask(self.ledger.expired_sessions):
                    if self._is_busy(session.session_id):
                        continue
                    why = f"no heartbeat for {self.settings.session_seconds:.0f} s"
                    await self.end_session(session.owner, session.session_id, "interrupted", why, rescue=True)
            except Refused:
                continue  # the database does not answer; the next look is soon
            except Exception:
                _log.exception("old sessions and results could not be swept")


def _quietly(call: Callable[..., object], *args: Any) -> None:
    with contextlib.suppress(Refused):
        call(*args)
