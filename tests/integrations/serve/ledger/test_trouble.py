"""A database that is locked, full, gone, read-only, taken or of another version: refused for now, and all goes on afterwards."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lossbook.datums.errors import RunError
from lossbook.integrations.serve.ledger import Ledger
from lossbook.integrations.serve.operations import Answer, Operation
from lossbook.integrations.serve.refusals import Refused

MODEL = "session:train:0"


def step(number: int) -> Operation:
    return Operation("ann", "optim_step", MODEL, number, "seq", "body", None)


class Working:
    """A ledger with a request that was answered and one that runs, and what both are after trouble."""

    def __init__(self, url: str) -> None:
        self.ledger = Ledger(url, patience=0.05)
        self.ledger.recover()
        self.ledger.add_session("ann", "session")
        self.ledger.add_model("ann", MODEL, "session", {})
        self.done, self.running = (self.ledger.submit(step(number)).request_id for number in (1, 2))
        self.ledger.begin([self.done, self.running])
        self.ledger.finish(self.done, Answer(b"one"))

    def refuses_writes(self) -> None:
        self.ledger.fetched(self.done)
        for call in (
            lambda: self.ledger.submit(step(3)),
            lambda: self.ledger.finish(self.running, Answer(bytes(200_000)), model_id=MODEL, executed_seq=2),
            lambda: self.ledger.used_up("ann", MODEL, "seq", 9),
            lambda: self.ledger.finish_session("ann", "session"),
            lambda: self.ledger.set_model(MODEL, durable_seq=2),
            self.ledger.prune,
        ):
            self.refuses(call)

    def refuses(self, call: Callable[[], Any]) -> None:
        with pytest.raises(Refused) as refused:
            call()
        assert (refused.value.status, refused.value.retry_after) == (503, 5)
        assert "/" not in refused.value.message, "no paths to clients"

    def works_again(self) -> None:
        assert self.ledger.answer("ann", self.done) == Answer(b"one")
        assert self.ledger.answer("ann", self.running) is None
        assert self.ledger.finish(self.running, Answer(bytes(200_000)), model_id=MODEL, executed_seq=2)
        assert self.ledger.model("ann", MODEL).executed_seq == 2
        third = self.ledger.submit(step(3))
        assert third.is_new, "what was refused before was not taken"
        assert self.ledger.begin([third.request_id]) == [third.request_id]
        assert self.ledger.session("ann", "session").ended is None
        assert self.ledger.numbers("ann", MODEL, "seq") == {1, 2, 3}
        self.ledger.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "serve.sqlite"


@pytest.fixture
def working(path: Path) -> Iterator[Working]:
    working = Working(f"sqlite:///{path}")
    yield working
    working.ledger.close()


def test_while_another_program_locks_the_database_requests_are_refused_for_now(working: Working, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    working.refuses_writes()
    assert working.ledger.answer("ann", working.done) == Answer(b"one"), "answers can be read meanwhile"
    other.execute("ROLLBACK")
    other.close()
    working.works_again()


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """No file grows beyond what the largest of the database is now."""
    size = max(one.stat().st_size for one in path.parent.iterdir())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of processes")
def test_on_a_full_disk_what_cannot_be_kept_is_refused_for_now(working: Working, path: Path) -> None:
    with full_disk(path):
        working.refuses_writes()
        assert working.ledger.answer("ann", working.done) == Answer(b"one")
    working.works_again()


def test_a_database_whose_file_is_gone_takes_nothing_until_it_is_back(working: Working, path: Path) -> None:
    away = path.with_name("away")
    path.rename(away)
    working.refuses_writes()
    working.refuses(lambda: working.ledger.answer("ann", working.done))
    assert not path.exists(), "an empty one is not made in its place"
    away.rename(path)
    working.works_again()


def test_a_copy_that_takes_the_place_of_the_database_is_taken_for_it(working: Working, path: Path) -> None:
    working.ledger.prune()
    copy = path.with_name("copy")
    with sqlite3.connect(path) as source, sqlite3.connect(copy) as target:
        source.backup(target)
    path.unlink()
    working.refuses_writes()
    for name in ("-wal", "-shm"):
        path.with_name(path.name + name).unlink(missing_ok=True)
    copy.rename(path)
    working.works_again()


def test_the_database_of_another_server_in_its_place_is_not_written_to(working: Working, path: Path) -> None:
    other = Working(f"sqlite:///{path.with_name('other.sqlite')}")
    other.ledger.close()
    for name in ("", "-wal", "-shm"):
        path.with_name(path.name + name).unlink(missing_ok=True)
    path.with_name("other.sqlite").rename(path)
    working.refuses_writes()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to mount")
def test_a_folder_that_becomes_read_only_is_refused_for_now(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "none", folder], capture_output=True).returncode != 0:
        pytest.skip("this container may not mount")
    try:
        working = Working(f"sqlite:///{folder / 'serve.sqlite'}")
        working.ledger.close()  # a file that is open for writing keeps its folder from becoming read-only
        assert subprocess.run([mount, "-o", "remount,ro", folder], capture_output=True).returncode == 0
        working.refuses_writes()
        subprocess.run([mount, "-o", "remount,rw", folder], check=True)
        working.works_again()
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_database_of_another_version_is_refused_in_one_line(new_url: Callable[[], str]) -> None:
    url = new_url()
    Ledger(url).close()
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE about SET value = '99' WHERE name = 'version'"))
    with pytest.raises(RunError, match="tables of version 99; this server reads version 1") as refused:
        Ledger(url)
    assert "\n" not in str(refused.value)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE about SET value = '1' WHERE name = 'version'"))
    Ledger(url).close()
    engine.dispose()


def test_a_database_of_other_tables_is_left_alone(new_url: Callable[[], str]) -> None:
    url = new_url()
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE models (name TEXT)"))
    with pytest.raises(RunError, match="'models' that is not lossbook's"):
        Ledger(url)
    assert sa.inspect(engine).get_table_names() == ["models"]
    engine.dispose()


def test_a_database_in_use_is_refused_until_its_server_ends(new_url: Callable[[], str]) -> None:
    url = new_url()
    first = Ledger(url)
    with pytest.raises(RunError, match="in use by another server"):
        Ledger(url)
    assert first.add_session("ann", "session").owner == "ann", "the first is not disturbed"
    first.close()
    Ledger(url).close()


def test_a_server_whose_database_another_one_took_writes_no_more(new_url: Callable[[], str]) -> None:
    url = new_url()
    first = Ledger(url, alone=False)
    request_id = first.submit(step(1)).request_id
    second = Ledger(url, alone=False)
    assert second.recover().failed == (request_id,)
    for call in (lambda: first.submit(step(2)), lambda: first.finish(request_id, Answer(b"late"))):
        with pytest.raises(Refused) as refused:
            call()
        assert refused.value.status == 503
    assert second.submit(step(2)).is_new
    answer = second.answer("ann", request_id)
    assert answer is not None
    assert answer.category == "server"
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://", "must be a file"),
        ("sqlite:///:memory:", "must be a file"),
        ("mysql://host/name", "SQLite or PostgreSQL, not mysql"),
        ("nonsense", "cannot be opened"),
        ("postgresql://me:secret@127.0.0.1:1/none", "cannot be opened"),
    ],
)
def test_a_wrong_url_is_refused_in_one_line_without_its_password(url: str, said: str) -> None:
    with pytest.raises(RunError, match=said) as refused:
        Ledger(url, patience=0.1)
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_file_that_is_no_database_is_refused_and_stays_as_it_is(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("notes\n" * 1000)
    with pytest.raises(RunError, match="not a database"):
        Ledger(f"sqlite:///{path}")
    assert path.read_text() == "notes\n" * 1000


@pytest.mark.slow
def test_a_postgresql_that_is_killed_and_comes_back_is_refused_for_as_long(cluster: Any) -> None:
    working = Working(cluster.new_url())
    cluster.stop()
    working.refuses_writes()
    working.refuses(lambda: working.ledger.answer("ann", working.done))
    cluster.start()
    working.works_again()
