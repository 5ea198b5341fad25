"""Requests and their answers: each number of a counter stands for one request, which runs once."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Unpack

import sqlalchemy as sa

from ..operations import Answer, Operation
from ..refusals import Refused
from ..settings import Limits
from .database import Database
from .records import ModelChanges, Pruned, Submission
from .tables import DONE, EXPIRED, OPEN, REFUSED, forgotten, models, requests

#: Seconds that a request without a result is remembered, so that a late retry is told so. Then its number is too old.
REMEMBERED_SECONDS = 86_400.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{22}")
_ID = re.compile(r"[!-~]{1,256}")


class Requests:
    """The requests of a ledger. See Ledger."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], float] = time.time,
        limits: Limits | None = None,
        fetched_seconds: float = 300,
        result_seconds: float = 3600,
    ) -> None:
        self._database, self._clock, self._limits = database, clock, limits or Limits()
        self._fetched_seconds, self._result_seconds = fetched_seconds, result_seconds
        self._memory = threading.Lock()  # over the four below
        self._open: dict[str, str] = {}  # owner by id of each request that this process is to run
        self._begun: set[str] = set()
        self._open_by_owner: Counter[str] = Counter()
        self._fetched: dict[str, float] = {}

    # --- a request's way ----------------------------------------------------------------------------------------------

    def submit(self, operation: Operation, *, model_known: bool = True) -> Submission:
        """Take a request, or say what became of it: the same request again has the first one's id and answer.

        model_known: whether its model, session or sampler is there; if not, only what was taken before is answered.

        Raises Refused: 400 when its number stands for another request, was refused or is too old; 404 for an unknown model;
        429 beyond `requests_per_key`; 503 when the database does not answer. Only after 429 and 503 may it be sent again.
        """
        key = _key(operation.owner, operation.scope, operation.counter, operation.number)
        name = f"{operation.kind} (request {operation.number})"
        with self._database.writing() as connection:
            row = connection.execute(sa.select(requests).where(*_is(key))).one_or_none()
            if row is None:
                self._may_be_new(connection, operation, key, model_known)
                request_id = secrets.token_urlsafe(16)
                fields = {"kind": operation.kind, "body_hash": operation.body_hash, "state": OPEN}
                connection.execute(
                    sa.insert(requests).values(**key, **fields, request_id=request_id, made=self._clock())
                )
            elif row.state == REFUSED:
                raise Refused(400, f"{name}: this number was refused before; send the request with the next number")
            elif (row.kind, row.body_hash) != (operation.kind, operation.body_hash):
                before = "the same with another body" if row.kind == operation.kind else row.kind
                raise Refused(400, f"{name}: this number was {before}; send the request with the next number")
            else:
                request_id = row.request_id
        if row is not None and row.state in (DONE, EXPIRED):
            return Submission(request_id, False, _answer(row) if row.state == DONE else None)
        return Submission(request_id, self._is_first(request_id, operation.owner))

    def begin(self, request_ids: Iterable[str]) -> list[str]:
        """Which of these may run now: each is given out once, and none that is done. Call it right before they run.

        Only in memory: what a process began and did not finish is never run again, nor is what it did not begin.
        """
        with self._memory:
            ids = [one for one in dict.fromkeys(request_ids) if one in self._open and one not in self._begun]
            self._begun.update(ids)
        return ids

    def finish(
        self, request_id: str, answer: Answer, *, model_id: str | None = None, **changes: Unpack[ModelChanges]
    ) -> bool:
        """Keep a request's answer, and with it, in one step, how its model changed. Returns whether this was its first answer.

        Answer the client only afterwards. Raises Refused(503) when the database does not answer: then call it again until it
        does. A second answer is dropped, with its changes.
        """
        values = {"body": answer.body, "content_type": answer.content_type, "category": answer.category}
        error = None if answer.error is None else _text(answer.error)
        with self._database.writing(synced=bool(changes)) as connection:
            is_open = (requests.c.request_id == request_id) & (requests.c.state == OPEN)
            is_first = connection.execute(
                sa.update(requests).where(is_open).values(state=DONE, finished=self._clock(), error=error, **values)
            ).rowcount
            if is_first and model_id is not None and changes:
                connection.execute(sa.update(models).where(models.c.model_id == model_id).values(**changes))
        with self._memory:
            self._begun.discard(request_id)
            owner = self._open.pop(request_id, None)
            if owner is not None:
                self._open_by_owner[owner] -= 1
        return bool(is_first)

    def answer(self, owner: str, request_id: str) -> Answer | None:
        """A request's answer, or None while there is none.

        Raises Refused: 404 for an unknown id, for another owner's, and for an expired result; 410 when that was a sample,
        which the client then asks for anew; 503 when the database does not answer.
        """
        row = None
        if isinstance(request_id, str) and _REQUEST_ID.fullmatch(request_id):
            with self._database.reading() as connection:
                row = connection.execute(sa.select(requests).where(requests.c.request_id == request_id)).one_or_none()
        if row is None or row.owner != owner or row.state == REFUSED:
            raise Refused(404, "there is no request of this id")
        if row.state == EXPIRED:
            raise Refused(
                410 if row.kind == "sample" else 404, f"the result of {row.kind} (request {row.number}) has expired"
            )
        return _answer(row) if row.state == DONE else None

    # --- numbers ------------------------------------------------------------------------------------------------------

    def used_up(self, owner: str, scope: str, counter: str, number: int) -> None:
        """Note that a request of this number was refused, so that no other waits for it. A request that was taken stays."""
        key = _key(owner, scope, counter, number)
        now = self._clock()
        fields = {"kind": "", "body_hash": "", "state": REFUSED, "made": now, "finished": now}
        with self._database.writing() as connection:
            if connection.scalar(sa.select(requests.c.number).where(*_is(key))) is None:
                connection.execute(sa.insert(requests).values(**key, **fields, request_id=secrets.token_urlsafe(16)))

    def numbers(self, owner: str, scope: str, counter: str, *, above: int = -1) -> set[int]:
        """Numbers above one that are taken or used up. Those of requests that were forgotten are not among them."""
        same = (requests.c.owner == owner, requests.c.scope == scope, requests.c.counter == counter)
        with self._database.reading() as connection:
            return set(connection.scalars(sa.select(requests.c.number).where(*same, requests.c.number > above)))

    def highest(self, owner: str, scope: str, counter: str) -> int | None:
        """The highest number that was ever taken or used up, or None."""
        with self._database.reading() as connection:
            numbers = [
                connection.scalar(
                    sa.select(sa.func.max(table.c.number)).where(
                        table.c.owner == owner, table.c.scope == scope, table.c.counter == counter
                    )
                )
                for table in (requests, forgotten)
            ]
        return max((number for number in numbers if number is not None), default=None)

    def unseen_failures(self, owner: str, scope: str, kinds: Sequence[str]) -> list[tuple[str, str, int, Answer]]:
        """(id, kind, number, answer) of a model's failed requests of these kinds that nobody has fetched, with none done after them."""
        same = (
            requests.c.owner == owner,
            requests.c.scope == scope,
            requests.c.counter == "seq",
            requests.c.state == DONE,
        )
        failed = (requests.c.error.is_not(None), requests.c.fetched.is_(None), requests.c.kind.in_(kinds))
        with self._database.reading() as connection:
            went = connection.scalar(sa.select(sa.func.max(requests.c.number)).where(*same, requests.c.error.is_(None)))
            later = requests.c.number > (-1 if went is None else went)
            rows = connection.execute(
                sa.select(requests).where(*same, *failed, later).order_by(requests.c.number)
            ).all()
        return [(row.request_id, row.kind, row.number, _answer(row)) for row in rows]

    def open_requests(self, owner: str | None = None) -> int:
        """How many requests wait or run, of one owner or of all."""
        with self._memory:
            return len(self._open) if owner is None else self._open_by_owner[owner]

    # --- age ----------------------------------------------------------------------------------------------------------

    def fetched(self, request_id: str) -> None:
        """Note that a client got this answer. It is kept `fetched_seconds` more, for the case that the response got lost.

        Written by the next `prune`: a process that dies before only keeps the answer longer.
        """
        with self._memory:
            self._fetched[request_id] = self._clock()

    def prune(self) -> Pruned:
        """Drop results that nobody will fetch, and requests too old to be retried. Call it about once a minute."""
        now = self._clock()
        with self._memory:
            fetched = dict(self._fetched)
        until = sa.case(
            (requests.c.fetched.is_(None), requests.c.finished + self._result_seconds),
            else_=requests.c.fetched + self._fetched_seconds,
        )
        empty = {"body": None, "error": None, "content_type": None, "category": None}
        with self._database.writing() as connection:
            _note_fetched(connection, fetched)
            done = connection.execute(
                sa.update(requests).where(requests.c.state == DONE, until <= now).values(state=EXPIRED, **empty)
            )
            pruned = Pruned(done.rowcount, _forget(connection, now - self._result_seconds - REMEMBERED_SECONDS))
        with self._memory:
            for request_id, at in fetched.items():
                if self._fetched.get(request_id) == at:
                    del self._fetched[request_id]
        return pruned

    # --- parts of the above -------------------------------------------------------------------------------------------

    def _may_be_new(
        self, connection: sa.Connection, operation: Operation, key: dict[str, Any], model_known: bool
    ) -> None:
        """Raises Refused where a request that was not taken before cannot be."""
        if not model_known:
            raise Refused(404, f"there is no {operation.scope!r}, or it has ended")
        most = self._limits.requests_per_key
        if self.open_requests(operation.owner) >= most:
            raise Refused(
                429, f"{most} requests of this key wait or run, the most there may be (requests_per_key)", retry_after=1
            )
        same = [forgotten.c[name] == key[name] for name in ("owner", "scope", "counter")]
        last = connection.scalar(sa.select(forgotten.c.number).where(*same))
        if last is not None and operation.number <= last:
            raise Refused(
                400, f"{operation.kind} (request {operation.number}) is too old: request {last} ended long ago"
            )

    def _is_first(self, request_id: str, owner: str) -> bool:
        """Whether an open request was not handed out yet. After a commit that only seemed to fail, its retry is the first."""
        with self._memory:
            if request_id in self._open:
                return False
            self._open[request_id] = owner
            self._open_by_owner[owner] += 1
            return True


def _forget(connection: sa.Connection, before: float) -> int:
    """Delete rows without a result that ended before this time, and keep the highest number of each counter."""
    old = requests.c.state.in_((EXPIRED, REFUSED)) & (requests.c.finished <= before)
    columns = (requests.c.owner, requests.c.scope, requests.c.counter)
    for *key, number in connection.execute(
        sa.select(*columns, sa.func.max(requests.c.number)).where(old).group_by(*columns)
    ):
        names = dict(zip(("owner", "scope", "counter"), key, strict=True))
        same = [forgotten.c[name] == value for name, value in names.items()]
        last = connection.scalar(sa.select(forgotten.c.number).where(*same))
        if last is None:
            connection.execute(sa.insert(forgotten).values(**names, number=number))
        elif number > last:
            connection.execute(sa.update(forgotten).where(*same).values(number=number))
    return connection.execute(sa.delete(requests).where(old)).rowcount


def _note_fetched(connection: sa.Connection, fetched: dict[str, float]) -> None:
    if fetched:
        connection.execute(
            sa.update(requests).where(requests.c.request_id == sa.bindparam("one")).values(fetched=sa.bindparam("at")),
            [{"one": request_id, "at": at} for request_id, at in fetched.items()],
        )


def _key(owner: str, scope: str, counter: str, number: int) -> dict[str, Any]:
    """A number's place; Refused where it cannot be one."""
    checked_id(scope, "there is no model, session or sampler of this id")
    if isinstance(number, bool) or not 0 <= number < 2**63:
        raise Refused(400, f"the number of a request is 0 to 2^63 - 1, not {str(number)[:30]}")
    return {"owner": owner, "scope": scope, "counter": counter, "number": number}


def _is(key: dict[str, Any]) -> list[sa.ColumnElement[bool]]:
    return [requests.c[name] == value for name, value in key.items()]


def _answer(row: Any) -> Answer:
    return Answer(row.body, row.content_type, row.error, row.category)


def _text(text: str) -> str:
    """Text that every database takes: no NUL, no lone surrogates."""
    return text.encode("utf-8", "replace").decode().replace("\0", "�")


def checked_id(text: object, refusal: str) -> str:
    """An id that a database can be asked for; Refused(404) for what cannot be one."""
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise Refused(404, refusal)
    return text
