"""Runs of recipes draw no curve here, which would take most of a tiny run's time, unless a test asks for `curve`."""

from __future__ import annotations

import pytest


@pytest.fixture
def curve() -> None:
    """The test's runs draw their curve.png."""


@pytest.fixture(autouse=True)
def _no_curve(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "curve" not in request.fixturenames:
        monkeypatch.setattr("lossbook.cookbook.loop.try_plot", lambda folders, path: f"no curve at {path}: a test")
