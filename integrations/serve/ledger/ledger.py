"""The ledger: what was asked, what was answered, and what there is, so that every request runs once."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..settings import Limits, ServeSettings
from .database import Database
from .forgetting import forget_sessions
from .holdings import Holdings
from .records import Recovered
from .recovery import recover
from .requests import Requests

#: Seconds that the rows of a session are kept after its end.
KEPT_SECONDS = 30 * 86_400.0


class Ledger(Requests, Holdings):
    """A server's memory in a database, SQLite or PostgreSQL. What a method wrote is on the disk when it returns.

    url                of the database, as SQLAlchemy takes it
    clock              seconds since 1970
    limits             how many requests, sessions, models and losses a key may have
    fetched_seconds    how long a fetched result is kept
    result_seconds     how long a result is kept that nobody fetches
    session_seconds    how long a session stays open without a heartbeat
    patience           how long to wait for a lock that another program holds
    alone              refuse a database that another server has open

    Methods block, and may be called by any thread, one at a time at best. Trouble with the database (locked, full, gone)
    raises Refused(503) with `retry_after`; a later call works when the trouble is over. The constructor raises RunError.

    Call `recover` once, before anything else: it fails what an earlier process left. Only the server that opened a database
    last can write to it.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float] = time.time,
        limits: Limits | None = None,
        fetched_seconds: float = 300,
        result_seconds: float = 3600,
        session_seconds: float = 1800,
        patience: float = 2.0,
        alone: bool = True,
    ) -> None:
        database = Database(url, patience=patience, alone=alone)
        Requests.__init__(
            self,
            database,
            clock=clock,
            limits=limits,
            fetched_seconds=fetched_seconds,
            result_seconds=result_seconds,
        )
        Holdings.__init__(self, database, clock=clock, limits=limits, session_seconds=session_seconds)

    @classmethod
    def of(cls, settings: ServeSettings, *, clock: Callable[[], float] = time.time) -> Ledger:
        """The ledger that a server's settings describe."""
        return cls(
            settings.url,
            clock=clock,
            limits=settings.limits,
            fetched_seconds=settings.fetched_seconds,
            result_seconds=settings.result_seconds,
            session_seconds=settings.session_seconds,
        )

    def recover(self) -> Recovered:
        """Fail what an earlier process left undone, and say which models it took with it. See `recovery`."""
        return recover(self._database, self._clock())

    def forget_sessions(self, seconds: float = KEPT_SECONDS) -> int:
        """Delete what belongs to sessions that ended so long ago, but for their checkpoints. Returns how many sessions."""
        return forget_sessions(self._database, self._clock() - seconds)

    def close(self) -> None:
        """Close the database."""
        self._database.close()
