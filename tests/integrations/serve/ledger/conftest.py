"""A ledger over each database: SQLite in the test's folder, and a PostgreSQL of these tests' own."""

from __future__ import annotations

import getpass
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy", reason="pip install 'lossbook[serve]'")

from lossbook.integrations.serve.ledger import Ledger

INSTALL = Path(__file__).resolve().parents[3] / "postgresql.sh"


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Cluster:
    """A PostgreSQL in a temporary folder, run by a user who is not root: initdb refuses root."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.numbers = folder, itertools.count()
        self.as_user: dict[str, Any] = {}
        if os.getuid() == 0:
            self.as_user = {"user": "postgres", "group": "postgres", "extra_groups": []}
            shutil.chown(folder, "postgres", "postgres")
        self.run("initdb", "-D", "data", "-A", "trust", "-U", "lossbook", "-E", "UTF8", "--no-sync")
        self.start()

    def run(self, program: str, *arguments: str) -> None:
        path = shutil.which(program) or str(max(Path("/usr/lib/postgresql").glob(f"*/bin/{program}")))
        command = [path, *arguments]
        with open(self.folder / "output", "a") as output:  # no pipe: the server would keep it open
            done = subprocess.run(command, cwd=self.folder, stdout=output, stderr=output, timeout=300, **self.as_user)
        assert done.returncode == 0, (self.folder / "output").read_text()

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off"
        self.run("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")

    def new_url(self) -> str:
        """The URL of a new, empty database."""
        import psycopg

        name = f"test{next(self.numbers)}"
        with psycopg.connect(f"host={self.folder} user=lossbook dbname=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        return f"postgresql://lossbook@/{name}?host={self.folder}"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    installed = subprocess.run(["sh", str(INSTALL)], capture_output=True, text=True)
    if installed.returncode != 0:
        pytest.skip(installed.stderr.strip().splitlines()[-1])
    if os.getuid() == 0:
        pwd = pytest.importorskip("pwd")
        if "postgres" not in {user.pw_name for user in pwd.getpwall()}:
            pytest.skip(f"PostgreSQL does not run as {getpass.getuser()}, and there is no user postgres")
    folder = Path(tempfile.mkdtemp(prefix="lb-pg-"))  # pytest's own is closed to others; and a socket's path is short
    try:
        cluster = Cluster(folder)
        yield cluster
        cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Gives the URL of a new, empty database."""
    if request.param == "postgresql":
        return request.getfixturevalue("cluster").new_url
    numbers = itertools.count()
    return lambda: f"sqlite:///{tmp_path / f'{next(numbers)}.sqlite'}"


@pytest.fixture
def url(new_url: Callable[[], str]) -> str:
    return new_url()


@pytest.fixture
def ledger(url: str, clock: Clock) -> Iterator[Ledger]:
    ledger = Ledger(url, clock=clock)
    yield ledger
    ledger.close()
