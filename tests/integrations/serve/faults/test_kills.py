"""SIGKILL at random moments of a training run, on both databases: the run ends as one that nobody disturbed.

LOSSBOOK_SERVE_KILLS=20 python -m pytest -s tests/integrations/serve/faults/test_kills.py     for more than three kills
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ..ledger.conftest import cluster as cluster
from ..process import Server
from .killed import check, killed_run, undisturbed_run

pytest.importorskip("tinker", reason="the SDK")
pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("LOSSBOOK_SERVE_KILLS", "3"))


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> dict[str, Any]:
    """The run on a server that nobody kills."""
    return undisturbed_run(server, KILLS)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_server_that_is_killed_at_any_moment_applies_nothing_twice_and_loses_nothing_it_acknowledged(
    database: str, undisturbed: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = [] if database == "sqlite" else ["--database", request.getfixturevalue("cluster").new_url()]
    outcome = killed_run(tmp_path / "root", KILLS, len(database), *url)
    check(outcome, undisturbed)
    print(f"\nserve, {database}: {outcome.summary()}")
