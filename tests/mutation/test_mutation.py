"""Mutants are of today's code, and docs/mutation.md speaks of today's code."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

from mutants import Mutant, mutants_of  # noqa: E402
from runner import NOT_IN_PLACE, in_fork, put_in_place, tried  # noqa: E402

from lossbook import get_loss  # noqa: E402

PAGE, EQUIVALENT = ROOT / "docs" / "mutation.md", Path(__file__).with_name("equivalent.toml")

SAMPLE = '''"""A module."""

from __future__ import annotations

LIMIT = 20


def clipped(values: list[int | None], *, low: float = 0.5, is_on: bool = True) -> float:
    """Text with 1 - 1 in it."""
    total = sum(v for v in values if v is not None and v < LIMIT)
    if is_on and not total:
        return -low
    return total * 2
'''

#: What becomes of each line, by hand.
EXPECTED = {
    "LIMIT = 20": ["LIMIT = 19", "LIMIT = 21"],
    "def clipped(values: list[int | None], *, low: float = 0.5, is_on: bool = True) -> float:": [
        "def clipped(values: list[int | None], *, low: float = (-0.5), is_on: bool = True) -> float:",
        "def clipped(values: list[int | None], *, low: float = 0.5, is_on: bool = False) -> float:",
        "def clipped(values: list[int | None], *, low: float = 1.5, is_on: bool = True) -> float:",
    ],
    "total = sum(v for v in values if v is not None and v < LIMIT)": [
        "total = sum(v for v in values if not (v is not None and v < LIMIT))",
        "total = sum(v for v in values if v is None and v < LIMIT)",
        "total = sum(v for v in values if v is not None and v <= LIMIT)",
        "total = sum(v for v in values if v is not None and v >= LIMIT)",
        "total = sum(v for v in values if v is not None or v < LIMIT)",
    ],
    "if is_on and not total:": [
        "if is_on and  total:",
        "if is_on or not total:",
        "if not (is_on and not total):",
    ],
    "return -low": ["return low"],
    "return total * 2": ["return total * 1", "return total * 3", "return total / 2"],
}


@pytest.fixture
def mutants(tmp_path: Path) -> list[Mutant]:
    (tmp_path / "sample.py").write_text(SAMPLE, encoding="utf-8")
    return list(mutants_of(tmp_path / "sample.py", tmp_path))


def test_every_operator_number_comparison_and_branch_is_changed_and_nothing_else(mutants: list[Mutant]) -> None:
    changes: dict[str, list[str]] = {}
    for mutant in mutants:
        changes.setdefault(mutant.before, []).append(mutant.after)
    assert {line: sorted(after) for line, after in changes.items()} == EXPECTED


def test_a_mutant_knows_its_line_and_the_function_that_runs_it(mutants: list[Mutant]) -> None:
    assert {(m.line, m.function) for m in mutants} == {
        (5, ""),
        (8, ""),  # defaults are computed when the module is imported
        (10, "clipped"),
        (11, "clipped"),
        (12, "clipped"),
        (13, "clipped"),
    }
    assert all(m.source.splitlines()[m.line - 1].strip() == m.after for m in mutants)


def test_every_mutant_of_the_losses_compiles_and_has_an_identity_of_its_own() -> None:
    every = [m for path in (ROOT / "losses" / "math").glob("*.py") for m in mutants_of(path, ROOT)]
    assert len(every) > 50
    assert len({m.identity for m in every}) == len(every)
    for mutant in every:
        compile(mutant.source, mutant.file, "exec")


def one_mutant(file: str, after: str) -> Mutant:
    (mutant,) = (m for m in mutants_of(ROOT / file, ROOT) if after in m.after)
    return mutant


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_changed_default_is_put_in_place_in_a_child_alone() -> None:
    mutant = one_mutant("losses/supervised/reweighted.py", "focal(logprobs: Tensor, *, gamma: NonNegative = 3.0)")

    def judge(say: Callable[[str], None]) -> bool:
        say(f"{put_in_place(mutant)} {get_loss('focal').settings['gamma']}")
        return False

    assert in_fork(judge) == "True 3.0"
    assert get_loss("focal").settings["gamma"] == 2.0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_what_a_running_process_cannot_take_is_left_to_a_fresh_import_and_not_called_noticed() -> None:
    in_a_class = one_mutant("losses/spec/spec.py", "linear: bool = True")
    assert in_fork(lambda say: tried(in_a_class, [], say)) == NOT_IN_PLACE
    broken = replace(one_mutant("losses/supervised/reweighted.py", "gamma: NonNegative = 3.0"), source="1 / 0")
    assert in_fork(lambda say: tried(broken, [], say)) == NOT_IN_PLACE
    whole = replace(broken, source=(ROOT / broken.file).read_text(encoding="utf-8"))
    assert in_fork(lambda say: tried(whole, [], say)) == ""


def rows_of_the_page() -> Iterator[tuple[str, str]]:
    """(file, line of code) of each survivor."""
    for row in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [one.strip() for one in re.split(r"(?<!\\)\|", row)[1:-1]]
        if len(cells) >= 3 and cells[1].startswith("`"):
            yield cells[0], cells[1].strip("`").replace("\\|", "|")


def test_the_page_speaks_of_lines_that_are_in_the_code() -> None:
    code: dict[str, set[str]] = {}
    stale: list[str] = []
    for file, line in rows_of_the_page():
        if file not in code:
            text = (ROOT / file).read_text(encoding="utf-8") if (ROOT / file).exists() else ""
            code[file] = {one.strip() for one in text.splitlines()}
        if line not in code[file]:
            stale.append(f"{file}: {line}")
    assert not stale, "docs/mutation.md is of other code: run make mutation\n" + "\n".join(stale)


def test_reasons_are_given_for_mutants_that_exist() -> None:
    reasons = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))["equivalent"]
    files = {one["file"] for one in reasons}
    exist = {(m.file, m.before, m.after) for file in files for m in mutants_of(ROOT / file, ROOT)}
    assert [one for one in reasons if (one["file"], one["before"], one["after"]) not in exist] == []
    assert all(len(one["why"]) > 10 for one in reasons)
