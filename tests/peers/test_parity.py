"""Our losses against other libraries' own code, as installed: value and gradient."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from .parity import Parity

HERE = Path(__file__).parent


def cases() -> list[Parity]:
    """The comparisons of every cases_*.py beside this."""
    found: list[Parity] = []
    for path in sorted(HERE.glob("cases_*.py")):
        found += importlib.import_module(f".{path.stem}", __package__).CASES
    return found


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in cases()])
def test_a_loss_is_the_peers_own(case: Parity) -> None:
    value, gradient = case.differences()
    assert value <= case.tolerance
    assert gradient <= case.tolerance
