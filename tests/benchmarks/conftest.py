"""The scripts in benchmarks/ import each other as neighbours, as they do when run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """benchmarks/ is on the path, and what a test changes in its modules is gone afterwards."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in [file.stem for file in BENCHMARKS.glob("*.py")]:
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def counting(neighbours: None) -> ModuleType:
    return importlib.import_module("counting")
