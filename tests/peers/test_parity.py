"""Our losses against other libraries' own code, as installed: value and gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .parity import Parity, cases
from .portability import by_portability

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parity.md"


#: Packages that take seconds to import.
SLOW = {"verl", "skyrl", "openrlhf", "areal"}


def parameter(case: Parity) -> Any:
    return pytest.param(case, id=case.id, marks=[pytest.mark.slow] if case.package in SLOW else [])


@pytest.mark.parametrize("case", [parameter(case) for case in cases()])
def test_a_loss_is_the_peers_own(case: Parity) -> None:
    value, gradient = case.differences()
    assert value <= case.tolerance
    assert gradient <= case.tolerance


def published() -> list[list[str]]:
    """The cells of each row of the page's table."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_page_has_every_comparison_with_its_release_and_no_other() -> None:
    rows = sorted(tuple(cells[:5]) for cells in published())
    assert rows == sorted(case.row for case in cases()), "docs/parity.md is not up to date: run `make docs`"


def test_the_page_claims_no_more_than_the_tests_hold() -> None:
    tolerances = {case.row: case.tolerance for case in cases()}
    for cells in published():
        differences = [float(cell.removeprefix("< ")) for cell in cells[5:8]]
        assert max(differences) == differences[2] == pytest.approx(tolerances[tuple(cells[:5])]), cells


def test_the_page_says_which_losses_can_go_to_the_tinker_service() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for title, names in by_portability().items():
        line = f"- {title} ({len(names)}): {', '.join(f'`{name}`' for name in names)}\n"
        assert line in text, "docs/parity.md is not up to date: run `make docs`"
