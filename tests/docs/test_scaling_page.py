"""docs/scaling.md shows what `lossbook doctor plan` prints."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_scaling_page", DOCS / "make_scaling_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_a_table_and_commands_with_their_outputs(script: ModuleType) -> None:
    page = (DOCS / "scaling.md").read_text(encoding="utf-8")
    assert page.count(script.BEGIN) == page.count(script.END) == 1
    assert script.BLOCK.findall(page), "a command whose output is shown"


@pytest.mark.slow
def test_the_plans_are_those_that_the_command_makes_now(script: ModuleType) -> None:
    page = (DOCS / "scaling.md").read_text(encoding="utf-8")
    assert script.written(page) == page, "run docs/make_scaling_page.py (`make docs`)"
