"""`lossbook serve` keeps every promise, asked through the official SDK and by raw requests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..serve.process import PATIENCE, serving

pytest.importorskip("tinker", reason="the official SDK comes with lossbook[dev]")
COMMAND = "from lossbook.cookbook.cli import command; command()"


@pytest.mark.slow
def test_our_server_keeps_every_promise(tmp_path: Path) -> None:
    flags = ["--json", "--examples", "3", "--tokens", "8", "--timeout", "120", "--api-key", "tml-local"]
    with serving(tmp_path / "root") as server:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", COMMAND, "conform", "--base-url", server.url, *flags],
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    report = json.loads(done.stdout)
    assert {one["id"]: one["verdict"] for one in report["findings"] if one["verdict"] != "holds"} == {}, done.stderr
    assert done.returncode == 0


@pytest.mark.slow
def test_a_server_that_is_not_there_is_said_to_be_so_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "conform", "--base-url", "http://127.0.0.1:9", "--model", "tiny"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert "no server answers at http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
