"""The working folder of the cookbook's loops, made once a session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

from .loops import Loops
from .workspace import built


@pytest.fixture(scope="session")
def loops(tmp_path_factory: pytest.TempPathFactory) -> Loops:
    """Where the cookbook's programs run. pytest-xdist's processes share it."""
    for package in ("tinker_cookbook", "pylatexenc", "datasets"):
        pytest.importorskip(package, reason="the cookbook comes with `make test`, its requirements with lossbook[dev]")
    base = tmp_path_factory.getbasetemp()
    folder: Path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cookbook"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            built(folder.with_name("cookbook-in-work")).rename(folder)
    return Loops(folder)
