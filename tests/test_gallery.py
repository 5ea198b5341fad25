"""The gallery's scripts run, draw or print what they claim, and keep to its form."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

import lossbook as lb

GALLERY = Path(__file__).resolve().parents[1] / "examples" / "gallery"
SCRIPTS = sorted(GALLERY.rglob("*.py"))
#: The story is the only long one.
LONGEST = {"law/micro_batch_mean": 160}
#: Besides lossbook: what a script may import.
ALLOWED = {"collections", "itertools", "matplotlib", "torch", "transformers"}


def name_of(script: Path) -> str:
    return script.relative_to(GALLERY).with_suffix("").as_posix()


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many figures were shown; a folder of its own, one thread, and losses that a script registers are forgotten."""
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="needs the extra plot")
    pyplot.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    shown: list[int] = []
    monkeypatch.setattr(pyplot, "show", lambda: (shown.append(len(pyplot.get_fignums())), pyplot.close("all")))
    before = set(lb.list_losses())
    yield shown
    pyplot.close("all")
    for name in set(lb.list_losses()) - before:
        lb.unregister_loss(name)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_a_script_runs_and_its_claims_hold(script: Path, drawn: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(script), run_name="__main__")  # the claims are assert statements at its end
    assert capsys.readouterr().out.strip()
    assert all(drawn)
    assert len(drawn) == script.read_text("utf-8").count("plt.show()")


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_a_script_has_the_gallerys_form(script: Path) -> None:
    text = script.read_text("utf-8")
    tree = ast.parse(text)
    title, line, blank, *prose = (ast.get_docstring(tree) or "").splitlines()
    assert line == "=" * len(title)
    assert not blank
    assert prose
    assert not title.endswith(".")
    assert 30 <= len(text.splitlines()) <= LONGEST.get(name_of(script), 80)
    assert "plt.show()" in text or "print(" in text
    claims = [node.test for node in tree.body if isinstance(node, ast.Assert)]
    assert any(isinstance(node, ast.Name) for claim in claims for node in ast.walk(claim)), "no claim about a number"
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        assert {module.split(".")[0] for module in modules} <= {*ALLOWED, "lossbook"}
        assert not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr == "__name__"


def test_every_folder_of_the_gallery_has_a_header_and_is_small() -> None:
    folders = {script.parent for script in SCRIPTS}
    assert GALLERY not in folders
    for folder in (GALLERY, *sorted(folders)):
        assert (folder / "GALLERY_HEADER.rst").is_file()
        assert len(list(folder.glob("*.py"))) <= 13
    assert len(SCRIPTS) >= 15
