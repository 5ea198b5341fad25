"""How docs/make_parity_page.py writes a comparison; tests/peers/test_parity.py checks the page against the comparisons."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "make_parity_page.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_parity_page", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("difference", "tolerance", "shown"),
    [
        (0.0, 1e-9, "< 1e-12"),
        (4e-16, 1e-9, "< 1e-12"),
        (9e-14, 1e-9, "< 1e-12"),
        (2e-13, 1e-9, "< 1e-11"),
        (1.9e-8, 1e-4, "< 1e-06"),
        (4e-7, 1e-6, "< 1e-06"),  # never more than the test allows
    ],
)
def test_a_figure_is_a_power_of_ten_with_a_digit_to_spare(
    script: ModuleType, difference: float, tolerance: float, shown: str
) -> None:
    assert script.bound(difference, tolerance) == shown


def test_a_row_holds_both_figures_and_keeps_its_columns(script: ModuleType) -> None:
    case = SimpleNamespace(
        row=("`mine`", "", "`Theirs`", "peer", "1.2"), differences=lambda: (0.0, 5e-8), tolerance=2e-6, note="|x| < 1"
    )
    assert script.row_of(case) == ("| `mine` |  | `Theirs` | peer | 1.2 | < 1e-12 | < 1e-06 | 2e-06 | \\|x\\| < 1 |\n")


def test_what_is_not_run_is_named_as_read_with_its_versions(script: ModuleType) -> None:
    run = [SimpleNamespace(package="trl", version="1.16.0"), SimpleNamespace(package="verl", version="0.9.1")]
    rows = [line.strip("| \n").split(" | ") for line in script.read_lines(run)]
    systems = {row[0] for row in rows}
    assert {"Tinker's service", "Fireworks", "Fireworks cookbook", "prime-rl", "Together fine-tuning API"} <= systems
    assert "verl" not in systems
    assert [row[1] for row in rows if row[0] == "TRL"] == ["0.29.0"]  # an older release than the one that is run
    assert [row for row in rows if row[0].lower() == "fireworks-ai"] == []
