"""One server process for the slow tests. `process.run_program` runs a program of the real SDK against it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .process import Server, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`lossbook serve` on loopback without keys, as a process of its own."""
    with serving(tmp_path_factory.mktemp("serve") / "root", "--hold-seconds", "5") as server:
        yield server
