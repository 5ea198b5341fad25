"""What the desk answers at once: sessions, what models and samplers are, and what is asked about runs and checkpoints."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from ....datums.errors import CheckpointNotFoundError, LossbookError
from ...tinker.errors import APIStatusError
from ...tinker.futures import APIFuture
from ...tinker.rest import RestClient
from ...tinker.store.names import new_session_id
from ..ledger import Ledger, ModelRecord
from ..operations import Answer, Operation
from ..refusals import Failed, Refused
from ..settings import ServeSettings
from .books import Books
from .failures import without_paths
from .models import Model, Models
from .order import BINDING, Lost
from .owners import Owners
from .runner import texts
from .samplers import Sampler, Samplers
from .scheduler import Scheduler

T = TypeVar("T")
Reason = Literal["success", "errored", "interrupted"]
#: Seconds within which a session's requests are taken for one heartbeat.
_BEAT_SECONDS = 15.0


class Access:
    """The part of a Desk that runs nothing on a model. See Desk."""

    def __init__(
        self,
        settings: ServeSettings,
        ledger: Ledger,
        books: Books,
        owners: Owners,
        models: Models,
        samplers: Samplers,
        scheduler: Scheduler,
    ) -> None:
        self.settings, self.ledger, self.books, self.owners = settings, ledger, books, owners
        self.models, self.samplers, self.scheduler = models, samplers, scheduler
        self._making = asyncio.Lock()  # of samplers, one after the other: a retry must see the first
        self._beats: dict[str, float] = {}

    # --- sessions -----------------------------------------------------------------------------------------------------

    async def create_session(
        self,
        owner: str,
        *,
        user_metadata: dict[str, Any] | None = None,
        project_id: str | None = None,
        display_name: str | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Begin a session; returns its id. The same key gives the same session."""
        session_id = new_session_id()
        add = self.ledger.add_session
        record = await self.books.ask(add, owner, session_id, {}, idempotency_key=idempotency_key)
        if record.session_id == session_id:
            noted = {"user_metadata": texts(user_metadata), "project_id": project_id, "display_name": display_name}
            store = self.owners.of(owner).store
            try:
                await self._in_thread(lambda: store.sessions.new(session_id=session_id, **noted))
            except Refused:
                await self.books.ask(self.ledger.finish_session, owner, session_id, "errored")
                raise
        return record.session_id

    async def heartbeat(self, owner: str, session_id: str) -> None:
        """Keep a session open. Raises Refused(410) for one that has ended, 404 where there is none."""
        await self.books.ask(self.ledger.heartbeat, owner, session_id)

    async def finish(self, owner: str, session_id: str, reason: Reason = "success", detail: str | None = None) -> None:
        """End a session, with its models and samplers; what is saved stays. The first word counts."""
        await self.end_session(owner, session_id, reason, detail)

    async def end_session(
        self, owner: str, session_id: str, reason: Reason, detail: str | None, *, rescue: bool = False
    ) -> None:
        """End a session, and free what lives in it. rescue: what is in no checkpoint becomes one, `interrupted-NUMBER`."""
        if not await self.books.ask(self.ledger.finish_session, owner, session_id, reason):
            return
        scopes = [session_id]
        scopes += [one for one, model in self.models.all.items() if model.record.session_id == session_id]
        scopes += [one for one, sampler in self.samplers.all.items() if sampler.record.session_id == session_id]
        why = f"session {session_id} has ended ({reason if detail is None else detail}): nothing of it runs any more"
        self.scheduler.close_scopes(scopes, Failed(why, "user"))
        self.models.ended.add(session_id)
        self._beats.pop(session_id, None)
        sessions = self.owners.of(owner).store.sessions
        await self._in_thread(lambda: sessions.finish(session_id, reason, detail))
        self.scheduler.soon(lambda: self._freed(session_id, scopes, rescue=rescue))

    # --- models and samplers ------------------------------------------------------------------------------------------

    async def is_there(self, operation: Operation) -> bool:
        """Whether the model, session or sampler that a request names is there, and its owner's. Counts as a heartbeat."""
        owner, scope = operation.owner, operation.scope
        if operation.counter == "seq":
            model = await self._model(owner, scope)
            await self._beat(owner, None if model is None else model.record.session_id)
            return model is not None
        if operation.counter == "sample":
            sampler = await self._sampler(owner, scope)
            if sampler.record.session_id in self.models.ended:
                return False
            await self._beat(owner, sampler.record.session_id)
            return True
        session = await self.books.ask(self.ledger.session, owner, scope)
        if session.ended is not None:
            raise Refused(404, f"session {scope} has ended: create another")
        if operation.counter == "model":
            most = self.settings.limits.models_per_key
            if sum(one.record.owner == owner for one in self.models.all.values()) >= most:
                raise Refused(
                    429,
                    f"{most} models of this key, the most there may be (models_per_key): end a session",
                    retry_after=30,
                )
        return True

    async def get_info(self, owner: str, model_id: str) -> dict[str, Any]:
        """A model's `get_info` answer. Raises Refused(404) for a model that is not there, 400 for one that is lost."""
        model = await self._model(owner, model_id)
        if model is None:
            raise Refused(404, f"there is no model {model_id!r}, or it has ended")
        if (problem := model.record.problem) is not None:
            raise Refused(400, problem)
        info = model.info.model_dump(mode="json", exclude_none=True)
        tokenizer = info["model_data"].get("tokenizer_id")
        if self.settings.keys and tokenizer is not None and Path(tokenizer).exists():
            del info["model_data"]["tokenizer_id"]  # a place on the server's disk, which is nothing to its clients
        return info

    async def create_sampling_session(
        self, owner: str, *, session_id: str, number: int, base_model: str | None = None, model_path: str | None = None
    ) -> str:
        """A sampler of saved weights (`model_path`, which wins), or of a base model; returns its id. Idempotent by number."""
        session = await self.books.ask(self.ledger.session, owner, session_id)
        if session.ended is not None:
            raise Refused(404, f"session {session_id} has ended: create another")
        if base_model is None and model_path is None:
            raise Refused(422, "create_sampling_session needs base_model or model_path")
        asked = {"number": number, "asked": [base_model, model_path]}
        async with self._making:
            for before in await self.books.ask(self.ledger.samplers, owner, session_id=session_id):
                if before.facts.get("number") == number:
                    if before.facts.get("asked") != asked["asked"]:
                        raise Refused(
                            400, f"sampling_session_seq_id {number} was of another sampler: give the next number"
                        )
                    return before.sampler_id
            place = self.owners.of(owner)
            facts = await self._in_thread(lambda: self.samplers.stored(owner, session_id, base_model, model_path))
            named = {"base_model": facts["base_model"], "model_path": facts["model_path"]}
            sampler_id = await self._in_thread(lambda: place.store.sessions.new_sampler(session_id, **named))
            add = self.ledger.add_sampler
            self.samplers.remember(await self.books.ask(add, owner, sampler_id, session_id, {**facts, **asked}))
        return sampler_id

    async def join_sampling_session(self, owner: str, sampler_id: str) -> int:
        """A number for one more client of a sampler: 1, 2, ..."""
        sampler = await self._sampler(owner, sampler_id)
        joined = self.samplers.joined(sampler)
        record = sampler.record
        await self.books.ask(self.ledger.set_sampler, sampler_id, facts=record.facts, in_memory=record.in_memory)
        return joined

    async def sampler(self, owner: str, sampler_id: str) -> dict[str, Any]:
        """`sampler_id`, `base_model` and `model_path` of a sampler."""
        facts = (await self._sampler(owner, sampler_id)).record.facts
        described = {"sampler_id": sampler_id, "base_model": facts["base_model"], "model_path": facts.get("model_path")}
        return {key: value for key, value in described.items() if value is not None}

    # --- runs and checkpoints -----------------------------------------------------------------------------------------

    async def rest(self, owner: str, call: Callable[[RestClient], APIFuture[T]]) -> T:
        """What an owner's `RestClient` answers: `await desk.rest(owner, lambda client: client.list_user_checkpoints(100, 0))`.

        Raises Refused where the client refuses; what stands in the way is 400, since clients retry 409.
        """
        client = self.owners.of(owner).rest
        return await self._in_thread(lambda: call(client).result())

    def capabilities(self) -> dict[str, Any]:
        """The `get_server_capabilities` answer: the models that the settings name."""
        return {"supported_models": self.owners.capabilities}

    # --- within -------------------------------------------------------------------------------------------------------

    async def _model(self, owner: str, model_id: str) -> Model | None:
        """A model that has not ended; of those that were lost with an earlier process only the ledger knows."""
        model = self.models.known(owner, model_id)
        if model is None and model_id not in self.models.all:
            with contextlib.suppress(Refused):
                record = await self.books.ask(self.ledger.model, owner, model_id)
                if record.state == "lost":
                    await self._admit(record)
                    model = self.models.known(owner, model_id)
        return model

    async def _admit(self, record: ModelRecord) -> None:
        """Know a model of an earlier process, and which number its next request has."""
        highest = await self.books.ask(self.ledger.highest, record.owner, record.model_id, "seq")
        unseen = await self.books.ask(self.ledger.unseen_failures, record.owner, record.model_id, BINDING)
        if self.scheduler.queue.knows(record.model_id):
            return
        self.scheduler.queue.know(record.owner, record.model_id, first=(highest or 0) + 1)
        self.scheduler.queue.block(record.model_id, [_failed(record, *one) for one in unseen])
        self.models.remember(record)

    async def _sampler(self, owner: str, sampler_id: str) -> Sampler:
        sampler = self.samplers.known(owner, sampler_id)
        if sampler is None:
            record = await self.books.ask(self.ledger.sampler, owner, sampler_id)
            if (await self.books.ask(self.ledger.session, owner, record.session_id)).ended is not None:
                raise Refused(404, f"sampler {sampler_id} ended with its session")
            sampler = self.samplers.remember(record)
        return sampler

    async def _beat(self, owner: str, session_id: str | None) -> None:
        """Take a request for a heartbeat of its session."""
        now, every = time.monotonic(), min(_BEAT_SECONDS, self.settings.session_seconds / 4)
        if session_id is not None and now - self._beats.get(session_id, -every) >= every:
            self._beats[session_id] = now
            await self.books.ask(self.ledger.heartbeat, owner, session_id)

    def _freed(self, session_id: str, scopes: list[str], *, rescue: bool) -> None:
        """Let go of what lived in a session; in the engine's thread."""
        raise NotImplementedError

    async def _in_thread(self, call: Callable[[], T]) -> T:
        """The result of a call that reads the disk. Raises Refused for what it refuses."""
        try:
            return await asyncio.shield(asyncio.to_thread(call))
        except APIStatusError as error:
            status = 404 if error.status_code == 404 else 400
            raise Refused(status, without_paths(error.message, self.owners.hidden())) from error
        except CheckpointNotFoundError as error:
            raise Refused(404, without_paths(str(error), self.owners.hidden())) from error
        except (LossbookError, ValueError) as error:
            raise Refused(400, without_paths(str(error), self.owners.hidden())) from error


def _failed(record: ModelRecord, request_id: str, kind: Any, number: int, answer: Answer) -> Lost:
    """A request that failed, as the queue knows it."""
    operation = Operation(record.owner, kind, record.model_id, number, "seq", "", None, request_id)
    return operation, Failed(str(answer.error), answer.category or "server")
