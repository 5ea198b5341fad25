"""The database under the ledger: SQLite in a file, or PostgreSQL. Transactions, and what trouble with it becomes.

A transaction that ended well outlives this process, however that ends. SQLite appends it to a log (WAL) which the system holds
from then on; what must outlive a power cut too is also synced (synchronous=FULL, else NORMAL). Without that sync, only what
says how far a model was trained would be dangerous to lose: the model would come back older than its owner was told. A request
that is lost together with the model's steps only has to be sent again. The log is one sequence, so that a synced commit
takes all earlier ones with it. PostgreSQL syncs every commit (synchronous_commit=on).
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from ....datums import disk
from ....datums.errors import RunError
from ..refusals import Refused
from .tables import VERSION, about, tables

try:
    import fcntl
except ImportError:  # Windows: two servers on one database are told apart by `about` alone
    fcntl = None

_LOG = logging.getLogger(__name__)
#: Seconds after which a client may try again when the database does not answer.
RETRY_AFTER = 5
_MENDS = "start the server with another --database, or move this one away"


class Database:
    """Connections to one database, of which this process is the only writer.

    patience  seconds to wait for a lock that another program holds, or for a server to answer; five times as long for
              PostgreSQL to notice that the server which had the database before is gone
    alone     refuse a database that another server has open; otherwise that one can write to it no more

    Raises RunError, in one line, when it cannot be opened or has another version's tables.
    """

    def __init__(self, url: str, *, patience: float = 2.0, alone: bool = True) -> None:
        self._file: Path | None = None
        self._held = ExitStack()
        self._writing = threading.RLock()
        self._server = secrets.token_urlsafe(16)
        with _opening():
            parsed = sa.make_url(url)
            self._engine = self._connected(parsed, patience)
            self.name = parsed.render_as_string(hide_password=True)
        try:
            with _opening():
                if alone:
                    self._hold(5 * patience)
                self._set_up()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all connections, and let other servers have the database."""
        self._held.close()  # first: PostgreSQL's lock goes with a connection that is then closed
        self._engine.dispose()

    @contextmanager
    def writing(self, *, synced: bool = False) -> Iterator[sa.Connection]:
        """A transaction that writes, one at a time in this process. synced: it outlives a power cut, see above.

        Raises Refused(503) when the database is locked, full, gone or taken by another server; then nothing, or in the worst
        case all of the block, was written: callers must stand both.
        """
        with self._writing, self._answering(), self._engine.connect() as connection:
            connection = connection.execution_options(writes=True, synced=synced)
            with connection.begin():
                server = connection.scalar(sa.select(about.c.value).where(about.c.name == "server"))
                if server != self._server:
                    raise OSError("another server has opened this database, or it is an older copy")
                yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that only reads. Raises Refused(503) as `writing` does."""
        with self._answering(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Around a transaction: trouble with the database becomes a refusal that clients take as a reason to try again."""
        try:
            if self._file is not None:
                self._same_file(self._file)
            yield
        except (SQLAlchemyError, OSError) as error:
            _LOG.warning("the ledger's database does not answer: %s", reason(error))
            raise Refused(
                503, "the server's database does not answer at the moment: try again", retry_after=RETRY_AFTER
            ) from error

    def _same_file(self, path: Path) -> None:
        """Deleted or replaced under open connections, a file of SQLite still takes writes, which nobody would read again."""
        at = path.stat()
        if (at.st_dev, at.st_ino) != self._inode:
            self._engine.dispose()  # new connections open what lies there now; `writing` sees whether it is ours
            self._inode = (at.st_dev, at.st_ino)

    def _connected(self, url: sa.URL, patience: float) -> sa.Engine:
        match url.get_backend_name():
            case "sqlite":
                if not url.database or url.database.startswith((":", "file:")):
                    raise RunError("the server's database must be a file: sqlite:///folder/serve.sqlite")
                self._file = Path(url.database).absolute()
                disk.make_folder(self._file.parent)
                engine = sa.create_engine(url, connect_args={"timeout": patience})
                event.listen(engine, "connect", _prepare_sqlite)
                event.listen(engine, "begin", _begin_sqlite)
                return engine
            case "postgresql":
                waits = round(1000 * patience)
                options = f"-c synchronous_commit=on -c lock_timeout={waits} -c statement_timeout={10 * waits}"
                arguments = {"connect_timeout": max(2, round(patience)), "tcp_user_timeout": 10 * waits}
                return sa.create_engine(
                    url.set(drivername="postgresql+psycopg"),
                    connect_args={"options": options, **arguments},
                    pool_pre_ping=True,
                    pool_timeout=patience,
                )
            case other:
                raise RunError(
                    f"the server's database is SQLite or PostgreSQL, not {other}: sqlite:///..., postgresql://..."
                )

    def _hold(self, patience: float) -> None:
        """Keep the database from other servers until this process ends, however it does."""
        if self._file is not None:
            # Not the database's own file: closing any descriptor of it would end the locks that SQLite has on it.
            with disk.writing(lock := self._file.with_name(f"{self._file.name}.lock")):
                descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
            self._held.callback(os.close, descriptor)
            is_free = _locked(descriptor)
        else:
            connection = self._held.enter_context(
                self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            )
            until = time.monotonic() + patience
            lock = sa.text("SELECT pg_try_advisory_lock(hashtext('lossbook serve'))")
            while not (is_free := connection.scalar(lock)) and time.monotonic() < until:
                time.sleep(0.1)
        if not is_free:
            raise RunError(
                f"{self.name} is in use by another server: stop it, or start this one with another --database"
            )

    def _set_up(self) -> None:
        """Make the tables where there are none, and become the one server that writes."""
        with self._engine.connect().execution_options(writes=True, synced=True) as connection, connection.begin():
            names = set(sa.inspect(connection).get_table_names())
            if about.name in names:
                version = connection.scalar(sa.select(about.c.value).where(about.c.name == "version"))
                if version != str(VERSION):
                    raise RunError(
                        f"{self.name} has tables of version {version}; this server reads version {VERSION}: {_MENDS}"
                    )
            elif mine := names & set(tables.tables):
                raise RunError(f"{self.name} has a table {min(mine)!r} that is not lossbook's: {_MENDS}")
            else:
                tables.create_all(connection)
                connection.execute(sa.insert(about).values(name="version", value=str(VERSION)))
            connection.execute(sa.delete(about).where(about.c.name == "server"))
            connection.execute(sa.insert(about).values(name="server", value=self._server))
        if self._file is not None:
            at = self._file.stat()
            self._inode = (at.st_dev, at.st_ino)


@contextmanager
def _opening() -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        raise RunError(f"the server's database cannot be opened: {reason(error)}. Is its URL right?") from error


def reason(error: BaseException) -> str:
    """An error's first line, of the driver's own error where SQLAlchemy wrapped one."""
    error = getattr(error, "orig", None) or error
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _locked(descriptor: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _prepare_sqlite(connection: object, _record: object) -> None:
    connection.isolation_level = None  # type: ignore[attr-defined]  # the driver begins no transactions: _begin_sqlite does
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    """A write takes the lock at once: a transaction that reads first and then writes could not be repeated."""
    options = connection.get_execution_options()
    writes = options.get("writes")
    if writes:
        connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if options['synced'] else 'NORMAL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
