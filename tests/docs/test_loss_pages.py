"""The pages of docs/losses are up to date with the registry."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tomllib
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, get_args
from xml.etree import ElementTree

import pytest

from lossbook import adaptive_layer, describe_loss, list_losses, list_presets
from lossbook.losses import Loss, Mixture, ids
from lossbook.losses.cards.sample_inputs import metric_kinds, usable
from lossbook.losses.cards.watched import WATCHED

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
    sys.path.insert(0, str(SCRIPT.parent))  # as it is when the script is run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


def test_the_pages_are_those_that_the_registry_gives(script: ModuleType) -> None:
    wanted = script.pages()
    assert {path.name for path in script.PAGES.glob("*.md")} == {*wanted}, f"docs/losses {STALE}"
    for name, text in wanted.items():
        assert (script.PAGES / name).read_text(encoding="utf-8") == text, f"docs/losses/{name} {STALE}"


def test_the_ids_that_editors_complete_are_those_of_the_registry(script: ModuleType) -> None:
    assert script.IDS.read_text(encoding="utf-8") == script.ids(), f"losses/ids.py {STALE}"
    known = {*get_args(ids.LossId), *get_args(ids.PresetId), *get_args(ids.MixtureId)}
    assert known >= {*list_presets(), *(card.name for card in script.cards())}
    for kind, loss_of in ((ids.LossId, Loss), (ids.PresetId, Loss), (ids.MixtureId, Mixture)):
        assert all(isinstance(usable(name, norm_length=4), loss_of) for name in get_args(kind))


def test_every_shipped_loss_is_on_a_page(script: ModuleType) -> None:
    shipped = {name for name in list_losses() if describe_loss(name).defined_in.startswith("lossbook.losses.")}
    assert {card.name for card in script.cards()} == shipped


def test_every_metric_of_a_shipped_loss_has_a_sentence_on_what_people_watch(script: ModuleType) -> None:
    named = {metric for card in script.cards() for metric in card.metrics}
    around_a_loss = adaptive_layer("info_nce", layers=(1,))  # a loss made of another has no card in the pages
    named |= {metric.rpartition("/")[2] for metric in metric_kinds(around_a_loss)} - {"loss"}
    assert not named - {*WATCHED}, "write one in losses/cards/watched.py"
    assert not {*WATCHED} - named, "no loss has it"


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
    size = sum(path.stat().st_size for path in script.PAGES.rglob("*.*"))
    assert size < 30e3 * len(script.cards()), "bytes per loss, of text and plot"


def test_no_plot_has_an_axis_with_two_equal_tick_labels_or_a_card_of_its_own(script: ModuleType) -> None:
    for path in (script.PAGES / "plots").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        axes = [
            axis for axis in ElementTree.fromstring(text).iter() if axis.get("id", "").startswith("matplotlib.axis")
        ]
        assert len(axes) == 4, path.name
        for axis in axes:
            labels = ["".join(label.itertext()) for label in axis.iter() if label.tag.endswith("}text")]
            assert len(labels) == len(set(labels)) > 2, f"{path.name}: {labels}"
        assert "prefers-color-scheme" in text, path.name
        assert not re.search(r"fill: #(fff|000)", text), f"{path.name} has colours of one mode only"


@pytest.mark.slow
def test_a_plot_is_drawn_the_same_every_time_and_is_a_picture(script: ModuleType) -> None:
    drawn = script.plot("ppo")
    assert drawn == script.plot("ppo")
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert "A = +1" in drawn
    assert not re.search(r"\d{4}-\d\d-\d\d", drawn)


@pytest.mark.slow
def test_the_plots_are_of_what_the_losses_give(script: ModuleType) -> None:
    for card in filter(script.has_curve, script.cards()):
        stored = (script.PAGES / script.plot_of(card)).read_text(encoding="utf-8")
        said = json.loads(stored.partition("<desc>")[2].partition("</desc>")[0])
        now = script.a_few_points(card.name)
        assert [len(line) for line in now] == [len(line) for line in said], (
            f"docs/losses/{script.plot_of(card)} {STALE}"
        )
        for one, other in zip(_flat(now), _flat(said), strict=True):
            assert one == pytest.approx(other, rel=2e-3, abs=1e-6), f"docs/losses/{script.plot_of(card)} {STALE}"


@pytest.mark.parametrize("name", ["dpo", "info_nce", "ppo"])
def test_a_plot_drawn_now_is_the_one_on_its_page(script: ModuleType, name: str) -> None:
    stored = (script.PAGES / script.plot_of(describe_loss(name))).read_text(encoding="utf-8")
    assert _alike(script.plot(name), stored), f"docs/losses/plots/{name}.svg {STALE}"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a `b|c` <d> [e]", r"a `b\|c` \<d> \[e\]"),
        ("2 * 3", r"2 \* 3"),
    ],
)
def test_prose_in_a_table_has_no_markup_but_code(script: ModuleType, text: str, escaped: str) -> None:
    assert script._text(text) == escaped


def test_every_loss_of_others_has_one_here_or_a_reason() -> None:
    for name, system in _elsewhere().items():
        for family in system.keys() - {"from"}:
            for theirs, ours in system[family].items():
                if isinstance(ours, str):
                    assert usable(ours, norm_length=4), f"{name}: {theirs}"
                else:
                    assert [*ours] == ["lacks"], f"{name}: {theirs}"
                    assert ours["lacks"], f"{name}: {theirs}"


def test_sentence_transformers_own_losses_are_counted() -> None:
    spec = importlib.util.find_spec("sentence_transformers")  # read, not imported: importing takes seconds
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("sentence-transformers is not installed")
    theirs: set[str] = set()
    for kind, prefix in (
        ("sentence_transformer", ""),
        ("sparse_encoder", "sparse: "),
        ("multi_vector_encoder", "multi-vector: "),
    ):
        theirs |= {prefix + re.sub("^Sparse|MultiVector", "", name) for name in _exported(spec, kind)}
    counted = _elsewhere()["sentence-transformers"]
    assert {*counted["embedding"]} == theirs
    assert {*counted["ranking"]} == _exported(spec, "cross_encoder")


def _exported(spec: ModuleSpec, kind: str) -> set[str]:
    """The loss classes that a package of sentence-transformers lists in its __all__."""
    path = Path((spec.submodule_search_locations or [""])[0]) / kind / "losses" / "__init__.py"
    return set(re.findall(r'"(\w+Loss)"', path.read_text(encoding="utf-8")))


def test_readme_and_comparison_count_as_the_table_does(script: ModuleType) -> None:
    heads, *rows = script.counted(
        {family: sum(card.family == family for card in script.cards()) for family in script.FAMILIES}
    )
    totals = dict(zip(heads, rows[-1], strict=True))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    comparison = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    assert f"[{totals['lossbook']} of them]" in readme
    named = ("lossbook", "TRL", "verl", "Tinker SDK")
    assert " | ".join(totals[name] for name in named) in readme
    tinker = f"{totals['Tinker SDK']}, and {totals['tinker-cookbook']} in the cookbook"
    named = ("Fireworks", "verl", "SkyRL", "prime-rl")
    row = [totals["lossbook"], totals["TRL"], tinker, *(totals[name] for name in named)]
    assert " | ".join(row) in comparison


def test_tinkers_own_ids_are_counted() -> None:
    types = pytest.importorskip("tinker.types")
    counted = _elsewhere()["Tinker SDK"]
    assert {*counted["supervised"], *counted["policy"]} == {*get_args(types.LossFnType)} - {"custom"}


def test_the_loss_types_of_trls_trainers_are_counted() -> None:
    spec = importlib.util.find_spec("trl")  # read, not imported: importing takes seconds
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("trl is not installed")
    counted = _elsewhere()["TRL"]
    folder = Path(spec.submodule_search_locations[0])
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


def _flat(lines: list[list[list[float]]]) -> list[float]:
    return [value for line in lines for point in line for value in point]


def _alike(drawn: str, stored: str) -> bool:
    """The same but for numbers that differ by TOLERANCE at most, and the ids that are made from them."""
    number = r"(?<![\w#])-?\d+(?:\.\d+)?"
    texts = [re.sub(r"[pm][0-9a-f]{10}", "id", text) for text in (drawn, stored)]
    if re.sub(number, "0", texts[0]) != re.sub(number, "0", texts[1]):
        return False
    pairs = zip(*(map(float, re.findall(number, text)) for text in texts), strict=True)
    return all(abs(one - other) <= TOLERANCE for one, other in pairs)


def _elsewhere() -> dict[str, Any]:
    return tomllib.loads((ROOT / "docs" / "elsewhere.toml").read_text(encoding="utf-8"))
