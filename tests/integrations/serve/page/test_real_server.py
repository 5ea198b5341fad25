"""The status page of a server process on which Tinker's SDK trains: the browser shows what happens there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ..process import finished, program, serving

pytestmark = [pytest.mark.slow, pytest.mark.browser]
PATIENCE = 60_000


def test_the_page_shows_the_models_and_curves_of_a_server_that_trains(browser: Any, tmp_path: Path) -> None:
    with serving(tmp_path / "root") as server:
        training = program(server, "interrupted", "half")
        assert training.stdout is not None
        assert "half" in training.stdout.readline()
        page = browser.new_page()
        trouble: list[str] = []
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.goto(f"{server.url}/")
        page.wait_for_selector("svg", timeout=PATIENCE)
        shown = page.inner_text("body")
        page.close()
        finished(training, "\n")
    assert "tiny" in shown
    assert "cross_entropy" in shown
    assert "MiB" in shown or "KiB" in shown, "what a model holds"
    assert trouble == []
