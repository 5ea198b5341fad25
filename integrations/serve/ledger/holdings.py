"""Sessions, and what lives in them: models, samplers, custom losses. Each is seen by its owner alone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import sqlalchemy as sa

from ..refusals import Refused
from ..settings import Limits
from .database import Database
from .records import LossRecord, ModelChanges, ModelRecord, ModelState, SamplerRecord, SessionRecord
from .requests import checked_id
from .tables import losses, models, samplers, sessions

_RECORDS: dict[str, Callable[..., Any]] = {
    "sessions": SessionRecord,
    "models": ModelRecord,
    "samplers": SamplerRecord,
    "losses": LossRecord,
}


class Holdings:
    """The sessions, models, samplers and losses of a ledger. See Ledger.

    What is asked for by an id that is unknown, or another owner's, raises Refused(404) with the same words. Every method
    raises Refused(503) when the database does not answer.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], float] = time.time,
        limits: Limits | None = None,
        session_seconds: float = 1800,
    ) -> None:
        self._database, self._clock, self._limits = database, clock, limits or Limits()
        self._session_seconds = session_seconds
        self._heartbeats: dict[str, float] = {}
        self._beating = threading.Lock()  # over the heartbeats

    # --- sessions -----------------------------------------------------------------------------------------------------

    def add_session(
        self, owner: str, session_id: str, facts: dict[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> SessionRecord:
        """Open a session, or give the one that was opened with the same idempotency key.

        Raises Refused(429) beyond `sessions_per_key`.
        """
        key = (
            None
            if idempotency_key is None
            else checked_id(idempotency_key, "X-Idempotency-Key: up to 256 ASCII characters")
        )
        now = self._clock()
        with self._database.writing() as connection:
            if key is not None:
                same = (sessions.c.owner == owner, sessions.c.idempotency_key == key)
                row = connection.execute(sa.select(sessions).where(*same)).one_or_none()
                if row is not None:
                    return _record(sessions, row)
            is_open = (sessions.c.owner == owner, sessions.c.ended.is_(None))
            number = connection.scalar(sa.select(sa.func.count()).select_from(sessions).where(*is_open)) or 0
            _within("sessions_per_key", "open sessions", number, self._limits.sessions_per_key)
            fields = {"facts": json.dumps(facts or {}), "made": now, "heartbeat": now, "idempotency_key": key}
            connection.execute(sa.insert(sessions).values(session_id=session_id, owner=owner, **fields))
        return SessionRecord(owner, session_id, facts or {}, now, now)

    def heartbeat(self, owner: str, session_id: str) -> None:
        """Note that a session's client is there. Raises Refused(410) after the session has ended.

        Written with the next `expired_sessions`: `recover` takes every open session's client to be there.
        """
        if self.session(owner, session_id).ended is not None:
            raise Refused(410, f"session {session_id} has ended: create another")
        with self._beating:
            self._heartbeats[session_id] = self._clock()

    def finish_session(self, owner: str, session_id: str, reason: str = "success") -> bool:
        """End a session. Its models are `ended`. Returns whether it was open: the first reason stays."""
        self.session(owner, session_id)
        with self._database.writing() as connection:
            is_open = (sessions.c.session_id == session_id) & sessions.c.ended.is_(None)
            ended = connection.execute(
                sa.update(sessions).where(is_open).values(ended=self._clock(), reason=reason[:64])
            )
            if ended.rowcount:
                connection.execute(sa.update(models).where(models.c.session_id == session_id).values(state="ended"))
        with self._beating:
            self._heartbeats.pop(session_id, None)
        return bool(ended.rowcount)

    def session(self, owner: str, session_id: str) -> SessionRecord:
        """A session, open or ended."""
        return self._one(sessions, owner, session_id, "session")

    def sessions(self, owner: str) -> list[SessionRecord]:
        """All sessions, the first one first."""
        return self._all(sessions, owner)

    def expired_sessions(self) -> list[SessionRecord]:
        """Open sessions of all owners without a heartbeat for `session_seconds`. They stay open: see finish_session."""
        with self._beating:
            heartbeats = dict(self._heartbeats)
        before = self._clock() - self._session_seconds
        with self._database.writing() as connection:
            if heartbeats:
                connection.execute(
                    sa.update(sessions)
                    .where(sessions.c.session_id == sa.bindparam("one"))
                    .values(heartbeat=sa.bindparam("at")),
                    [{"one": session_id, "at": at} for session_id, at in heartbeats.items()],
                )
            silent = sa.select(sessions).where(sessions.c.ended.is_(None), sessions.c.heartbeat <= before)
            expired = [_record(sessions, row) for row in connection.execute(silent.order_by(sessions.c.made))]
        with self._beating:
            for session_id, at in heartbeats.items():
                if self._heartbeats.get(session_id) == at:
                    del self._heartbeats[session_id]
        return expired

    # --- models -------------------------------------------------------------------------------------------------------

    def add_model(
        self, owner: str, model_id: str, session_id: str, facts: dict[str, Any], *, state: ModelState = "memory"
    ) -> ModelRecord:
        """Note a model, or give the one of this id. Raises Refused(429) beyond `models_per_key` that have not ended."""
        values = {"state": state, "executed_seq": 0, "durable_seq": 0, "checkpoint_seq": 0, "dirty": False}
        return self._add(
            models, owner, model_id, session_id, facts, values, ("models_per_key", "models of open sessions")
        )

    def model(self, owner: str, model_id: str) -> ModelRecord:
        """A model, also one that is lost or has ended."""
        return self._one(models, owner, model_id, "model")

    def models(self, owner: str, *, session_id: str | None = None) -> list[ModelRecord]:
        """All models, of one session or of all, the first one first."""
        return self._all(models, owner, session_id)

    def set_model(self, model_id: str, **changes: Unpack[ModelChanges]) -> None:
        """Change fields of a model. What a request changed goes with its answer: see `finish`."""
        if not changes:
            return
        with self._database.writing(synced=True) as connection:
            connection.execute(sa.update(models).where(models.c.model_id == model_id).values(**changes))

    # --- samplers -----------------------------------------------------------------------------------------------------

    def add_sampler(
        self, owner: str, sampler_id: str, session_id: str, facts: dict[str, Any], *, in_memory: bool = False
    ) -> SamplerRecord:
        """Note a sampler, or give the one of this id. in_memory: its weights are nowhere else."""
        return self._add(samplers, owner, sampler_id, session_id, facts, {"in_memory": in_memory, "lost": False})

    def sampler(self, owner: str, sampler_id: str) -> SamplerRecord:
        """A sampler, also a lost one."""
        return self._one(samplers, owner, sampler_id, "sampler")

    def samplers(self, owner: str, *, session_id: str | None = None) -> list[SamplerRecord]:
        """All samplers, of one session or of all, the first one first."""
        return self._all(samplers, owner, session_id)

    def set_sampler(self, sampler_id: str, *, facts: dict[str, Any], in_memory: bool) -> None:
        """Change what is known of a sampler: its weights were written to the disk, say."""
        with self._database.writing() as connection:
            values = {"facts": json.dumps(facts), "in_memory": in_memory}
            connection.execute(sa.update(samplers).where(samplers.c.sampler_id == sampler_id).values(**values))

    # --- custom losses ------------------------------------------------------------------------------------------------

    def add_loss(self, owner: str, loss_id: str, session_id: str, facts: dict[str, Any]) -> LossRecord:
        """Keep a custom loss, or give the one of this id. Raises Refused(400) beyond `losses_per_session`."""
        return self._add(losses, owner, loss_id, session_id, facts, {}, ("losses_per_session", "custom losses"))

    def loss(self, owner: str, loss_id: str) -> LossRecord:
        """A custom loss."""
        return self._one(losses, owner, loss_id, "custom loss")

    def losses(self, owner: str, *, session_id: str | None = None) -> list[LossRecord]:
        """All custom losses, of one session or of all, the first one first."""
        return self._all(losses, owner, session_id)

    # --- parts of the above -------------------------------------------------------------------------------------------

    def _add(
        self,
        table: sa.Table,
        owner: str,
        own_id: str,
        session_id: str,
        facts: dict[str, Any],
        values: dict[str, Any],
        limit: tuple[str, str] | None = None,
    ) -> Any:
        key = _key(table)
        with self._database.writing() as connection:
            row = connection.execute(sa.select(table).where(table.c.owner == owner, key == own_id)).one_or_none()
            if row is not None:
                return _record(table, row)
            if limit is not None:
                if table is models:
                    counted = (models.c.owner == owner, models.c.state != "ended")
                else:
                    counted = (table.c.owner == owner, table.c.session_id == session_id)
                number = connection.scalar(sa.select(sa.func.count()).select_from(table).where(*counted)) or 0
                _within(*limit, number, getattr(self._limits, limit[0]), status=429 if table is models else 400)
            fields = {key.name: own_id, "owner": owner, "session_id": session_id, "made": self._clock(), **values}
            connection.execute(sa.insert(table).values(facts=json.dumps(facts), **fields))
        return _RECORDS[table.name](facts=facts, **fields)

    def _one(self, table: sa.Table, owner: str, own_id: str, what: str) -> Any:
        refusal = f"there is no {what} of this id"
        key = _key(table) == checked_id(own_id, refusal)
        with self._database.reading() as connection:
            row = connection.execute(sa.select(table).where(table.c.owner == owner, key)).one_or_none()
        if row is None:
            raise Refused(404, refusal)
        return _record(table, row)

    def _all(self, table: sa.Table, owner: str, session_id: str | None = None) -> list[Any]:
        of = [table.c.owner == owner, *([] if session_id is None else [table.c.session_id == session_id])]
        with self._database.reading() as connection:
            return [
                _record(table, row) for row in connection.execute(sa.select(table).where(*of).order_by(table.c.made))
            ]


def _key(table: sa.Table) -> sa.Column[str]:
    return table.c[
        {"sessions": "session_id", "models": "model_id", "samplers": "sampler_id"}.get(table.name, "loss_id")
    ]


def _record(table: sa.Table, row: Any) -> Any:
    fields = dict(row._mapping)
    fields.pop("idempotency_key", None)
    return _RECORDS[table.name](**{**fields, "facts": json.loads(fields["facts"])})


def _within(name: str, what: str, number: int, most: int, *, status: int = 429) -> None:
    if number >= most:
        retry_after = 30 if status == 429 else None
        raise Refused(
            status, f"{number} {what}, the most there may be ({name}): end some first", retry_after=retry_after
        )


def models_of(rows: Sequence[Any]) -> tuple[ModelRecord, ...]:
    """Rows of the table of models as records."""
    return tuple(_record(models, row) for row in rows)


def samplers_of(rows: Sequence[Any]) -> tuple[SamplerRecord, ...]:
    """Rows of the table of samplers as records."""
    return tuple(_record(samplers, row) for row in rows)
