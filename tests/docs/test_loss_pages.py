"""The pages of docs/losses are those that the registry gives now."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import get_args
from xml.etree import ElementTree

import pytest

from lossbook import describe_loss, list_losses

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "docs" / "make_loss_pages.py"
STALE = "is not what the registry gives: run `make docs` and commit what it writes"
#: A dot of a plot may move by rounding on another machine: points of 1/72 inch.
TOLERANCE = 0.05


@pytest.fixture(scope="module")
def script() -> ModuleType:
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("make_loss_pages", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_those_that_the_registry_gives(script: ModuleType) -> None:
    wanted = script.pages()
    assert {path.name for path in script.PAGES.glob("*.md")} == {*wanted}, f"docs/losses {STALE}"
    for name, text in wanted.items():
        assert (script.PAGES / name).read_text(encoding="utf-8") == text, f"docs/losses/{name} {STALE}"


def test_every_shipped_loss_is_on_a_page(script: ModuleType) -> None:
    shipped = {name for name in list_losses() if describe_loss(name).defined_in.startswith("lossbook.losses.")}
    assert {card.name for card in script.cards()} == shipped


def test_there_is_a_plot_for_every_loss_that_has_a_curve_and_no_other(script: ModuleType) -> None:
    wanted = {script.plot_of(card) for card in script.cards() if script.has_curve(card)}
    assert {f"plots/{path.name}" for path in (script.PAGES / "plots").iterdir()} == wanted, f"docs/losses/plots {STALE}"


def test_every_link_within_the_pages_leads_somewhere(script: ModuleType) -> None:
    anchors = {path.name: set(_anchors(path.read_text(encoding="utf-8"))) for path in script.PAGES.glob("*.md")}
    for page in anchors:
        for file, anchor in re.findall(
            r"\]\((?!http)([^)#]*)#?([^)]*)\)", (script.PAGES / page).read_text(encoding="utf-8")
        ):
            assert (script.PAGES / (file or page)).exists(), f"{page} links to {file}"
            assert not anchor or anchor in anchors[file or page], f"{page} links to {file}#{anchor}"


def test_the_pages_are_small(script: ModuleType) -> None:
    assert sum(path.stat().st_size for path in script.PAGES.rglob("*.*")) < 3e6


def test_a_plot_is_drawn_the_same_every_time_and_is_a_picture(script: ModuleType) -> None:
    drawn = script.plot("ppo")
    assert drawn == script.plot("ppo")
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert "A = +1" in drawn
    assert not re.search(r"\d{4}-\d\d-\d\d", drawn)


@pytest.mark.slow
def test_the_plots_are_those_that_the_losses_give(script: ModuleType) -> None:
    for card in script.cards():
        drawn = script.plot(card.name)
        if drawn is not None:
            stored = (script.PAGES / script.plot_of(card)).read_text(encoding="utf-8")
            assert _alike(drawn, stored), f"docs/losses/{script.plot_of(card)} {STALE}"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a `b|c` <d> [e]", r"a `b\|c` \<d> \[e\]"),
        ("2 * 3", r"2 \* 3"),
    ],
)
def test_prose_in_a_table_has_no_markup_but_code(script: ModuleType, text: str, escaped: str) -> None:
    assert script._text(text) == escaped


def test_tinkers_own_ids_are_counted() -> None:
    types = pytest.importorskip("tinker.types")
    counted = tomllib.loads((ROOT / "docs" / "elsewhere.toml").read_text(encoding="utf-8"))["Tinker SDK"]
    assert {*counted["supervised"], *counted["policy"]} == {*get_args(types.LossFnType)} - {"custom"}


def test_the_loss_types_of_trls_trainers_are_counted() -> None:
    found = importlib.util.find_spec("trl")  # read, not imported: it takes seconds
    if found is None or not found.submodule_search_locations:
        pytest.skip("trl is not installed")
    counted = tomllib.loads((ROOT / "docs" / "elsewhere.toml").read_text(encoding="utf-8"))["TRL"]
    folder = Path(found.submodule_search_locations[0])
    dpo = set(re.findall(r'loss_type == "(\w+)"', (folder / "trainer" / "dpo_trainer.py").read_text(encoding="utf-8")))
    assert {one.removeprefix("dpo: ") for one in counted["preference"] if one.startswith("dpo: ")} == dpo
    grpo = (folder / "trainer" / "grpo_trainer.py").read_text(encoding="utf-8")
    named = set(re.findall(r'self\.loss_type == "(\w+)"', grpo))
    for listed in re.findall(r"self\.loss_type in \[([^\]]*)\]", grpo):
        named |= set(re.findall(r'"(\w+)"', listed))
    assert named == {*counted["policy"]} - {"rloo", "gmpo", "a2po"}


def _anchors(text: str) -> list[str]:
    return [
        re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    ]


def _alike(drawn: str, stored: str) -> bool:
    """The same but for numbers that differ by TOLERANCE at most, and the ids that are made from them."""
    number = r"(?<![\w#])-?\d+(?:\.\d+)?"
    texts = [re.sub(r"[pm][0-9a-f]{10}", "id", text) for text in (drawn, stored)]
    if re.sub(number, "0", texts[0]) != re.sub(number, "0", texts[1]):
        return False
    pairs = zip(*(map(float, re.findall(number, text)) for text in texts), strict=True)
    return all(abs(one - other) <= TOLERANCE for one, other in pairs)
