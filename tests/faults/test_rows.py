"""Every row of faults has tests that exist, or says what it waits for; docs/reliability.md is what the rows and outcomes make."""

from __future__ import annotations

import ast
import json
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from .rows import ROWS, Row

ROOT = Path(__file__).resolve().parents[2]
#: How many rows of each kind there are.
KINDS = {"N": 34, "D": 20, "C": 15, "T": 12, "K": 13, "S": 21, "A": 15, "U": 6}


@cache
def functions(file: str) -> frozenset[str]:
    """The names of the functions in a file of tests."""
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def the_page() -> Any:
    spec = spec_from_file_location("make_reliability_page", ROOT / "docs" / "make_reliability_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_every_row_once() -> None:
    expected = [f"{kind}{number}" for kind, count in KINDS.items() for number in range(1, count + 1)]
    assert sorted(row.id for row in ROWS) == sorted(expected)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_row_has_tests_that_exist_or_says_what_it_waits_for(row: Row) -> None:
    assert bool(row.tests) != bool(row.waits)
    for test in row.tests:
        file, _, function = test.partition("::")
        assert function.startswith("test_")
        assert function in functions(file), f"{row.id}: {file} has no {function}; name the test that holds the row now"


def test_the_page_is_what_rows_and_outcomes_make() -> None:
    page = the_page()
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "run `python docs/make_reliability_page.py --page`"


def test_no_outcome_is_a_failure_and_each_is_of_a_test_of_a_row() -> None:
    outcomes = json.loads((ROOT / "tests" / "faults" / "outcomes.json").read_text())["outcomes"]
    assert outcomes.keys() <= {test for row in ROWS for test in row.tests}
    assert not [test for test, counts in outcomes.items() if counts.get("failed")]
