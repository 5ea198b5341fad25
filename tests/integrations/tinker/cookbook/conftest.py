"""The working folders of the cookbook's loops, made once a session: one for each way to run them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from .loops import LOSSBOOK, Loops
from .servers import shared
from .workspace import STUDENT, TEACHER, built

#: What stands in for the loss that `stream` asks for, and whose formula is not public: an option of both ways.
OPTIONS = ("--stable-reinforce", "importance_sampling")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's folder, which pytest-xdist's processes share; in it `cookbook`, with the models and the data."""
    for package in ("tinker_cookbook", "pylatexenc", "datasets"):
        pytest.importorskip(package, reason="the cookbook comes with `make test`, its requirements with lossbook[dev]")
    own = tmp_path_factory.getbasetemp()
    base: Path = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with FileLock(base / "cookbook.lock"):
        if not (base / "cookbook").exists():
            built(base / "cookbook-in-work").rename(base / "cookbook")
    return base


@pytest.fixture(scope="session")
def in_process(base: Path) -> Loops:
    """The programs with lossbook's door in place of the SDK."""
    return Loops(_folder(base, "in-process"), [*LOSSBOOK, "tinker", *OPTIONS], {})


@pytest.fixture(scope="session")
def over_http(base: Path) -> Iterator[Loops]:
    """The programs with the official SDK, and a server in another process."""
    pytest.importorskip("tinker", reason="the SDK comes with `make test`")
    models = [word for name in (STUDENT, TEACHER) for word in (name, str(base / "cookbook" / name))]
    with shared(base / "cookbook-server", "--models", *models, *OPTIONS) as url:
        environment = {"TINKER_BASE_URL": url, "TINKER_API_KEY": "tml-local"}
        yield Loops(_folder(base, "over-http"), [sys.executable], environment)


@pytest.fixture(params=["in_process", "over_http"])
def loops(request: pytest.FixtureRequest) -> Loops:
    """Where the cookbook's programs run: first with the door in their own process, then with the SDK and a server."""
    return request.getfixturevalue(request.param)


def _folder(base: Path, name: str) -> Path:
    with FileLock(base / f"{name}.lock"):
        if not (base / name).exists():
            shutil.copytree(base / "cookbook", base / f"{name}-in-work")
            (base / f"{name}-in-work").rename(base / name)
    return base / name
