"""The marimo notebooks run from start to end, at their own settings and at others, and keep to marimo's form."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lossbook as lb

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("marimo") is None, reason="needs the extra notebook"),
]
NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "examples" / "notebooks").glob("*.py"))
#: One loss of each kind of data: tokens, with and without a sampler; values; pairs; labels; candidates; vectors.
KINDS = (
    "cross_entropy",
    "label_smoothing",
    "dapo",
    "gspo",
    "value_clip",
    "dpo",
    "kto",
    "topk_jsd",
    "info_nce",
    "triplet",
)


def notebook(name: str) -> Any:
    """The notebook's app, whose `run(defs=...)` takes values in place of the cells that would define them."""
    (path,) = (path for path in NOTEBOOKS if path.stem == name)
    return runpy.run_path(str(path))["app"]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """transformers takes a process that has imported marimo for a notebook, and wants IPython then."""
    yield
    sys.modules.pop("marimo", None)


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Figures are drawn into memory, and runs made into a folder of their own."""
    pytest.importorskip("matplotlib.pyplot").switch_backend("agg")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_marimo_has_nothing_to_say_about_them() -> None:
    assert len(NOTEBOOKS) == 2
    checked = subprocess.run(
        [sys.executable, "-m", "marimo", "check", "--strict", *map(str, NOTEBOOKS)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.usefixtures("running")
class TestWhatDoesThisLossDo:
    """examples/notebooks/what_does_this_loss_do.py."""

    @pytest.mark.parametrize("name", KINDS)
    def test_it_shows_any_loss_at_each_token(self, name: str) -> None:
        _, shown = notebook("what_does_this_loss_do").run(defs={"name": name, "card": lb.describe_loss(name)})
        assert shown["loss"].name == name
        assert not shown["refusal"]
        assert shown["curve"].lines
        columns = [column for column in shown["rows"][0] if column.endswith("gradient")]
        numbers = [value for row in shown["rows"] for column in columns for value in flat(row[column])]
        assert any(value for value in numbers if not math.isnan(value))

    def test_a_clip_bound_that_is_moved_takes_the_gradient_away(self) -> None:
        settings = {"clip_low": 0.8, "clip_high": 1.2, "kl_coefficient": 0.0, "kl_estimator": "k3", "reduction": "sum"}

        def gradients(**changes: Any) -> list[float]:
            defs = {"values": settings | changes, "shift": 0.0}
            _, shown = notebook("what_does_this_loss_do").run(defs=defs)
            return [row["gradient"] for row in shown["rows"] if row["weight"] and row["advantage"] > 0]

        # ratios of the rewarded answer's tokens: exp(0.1) and exp(-0.5)
        assert gradients() == pytest.approx([-math.exp(0.1), -math.exp(-0.5)], rel=1e-6)
        assert gradients(clip_high=1.05) == pytest.approx([0.0, -math.exp(-0.5)], rel=1e-6)

    def test_settings_that_exclude_each_other_are_explained(self) -> None:
        values = {"kl_coefficient": 0.0, "kl_estimator": "k1"}
        _, shown = notebook("what_does_this_loss_do").run(defs={"values": values, "shift": 0.0})
        assert shown["loss"] is None
        assert "kl_coefficient" in shown["refusal"]

    def test_every_end_of_every_slider_is_within_the_settings_bounds(self) -> None:
        _, shown = notebook("what_does_this_loss_do").run(defs={"name": "dft", "card": lb.describe_loss("dft")})
        sliders = accepted = 0
        for name in lb.list_losses():
            length = {"norm_length": 8} if lb.describe_loss(name).reduction == "seq-mean-token-sum-norm" else {}
            for setting in lb.describe_loss(name).settings.values():
                if setting.type == "float" and not setting.required:
                    low, high = shown["ends"](setting)
                    assert low <= setting.default <= high
                    assert low < high
                    for end in (low, high):
                        with contextlib.suppress(lb.errors.LossConfigError):  # two settings may exclude each other
                            lb.get_loss(name, **{setting.name: end}, **length)
                            accepted += 1
                    sliders += 1
        assert sliders > 50
        assert accepted >= 2 * sliders - 10


@pytest.mark.usefixtures("running")
class TestDebugARun:
    """examples/notebooks/debug_a_run.py."""

    def test_it_names_what_is_wrong_with_the_run_that_it_makes_and_opens_any_folder(self) -> None:
        _, made = notebook("debug_a_run").run()
        assert "The model overfits its training data" in [one.title for one in made["diagnoses"]]
        assert made["curves"].keys() >= {"loss", "held_out_nll"}
        losses = [token["loss"] for token in made["worst"]]
        assert losses == sorted(losses, reverse=True)
        steps = [row["step"] for row in made["recorded"]]
        defs = {"folder": made["folder"], "step": steps[0], "column": "logprob", "chosen": ["nll"], "window": 5}
        _, opened = notebook("debug_a_run").run(defs=defs)
        assert opened["curves"].keys() == {"nll"}
        logprobs = [token["logprob"] for token in opened["worst"]]
        assert logprobs == sorted(logprobs)  # the largest is the least likely
        assert opened["view"].count("tv-token") > len(opened["sequences"])
        assert opened["centred"]([1.0, 2.0, 3.0, 4.0], 3) == [1.0, 2.0, 3.0, 4.0]  # a straight line stays one


def test_the_code_of_their_page_runs(tmp_path: Path) -> None:
    page = (NOTEBOOKS[0].parents[2] / "docs" / "notebooks.md").read_text("utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    script = tmp_path / "block.py"
    script.write_text(block, encoding="utf-8")
    assert runpy.run_path(str(script))["beyond"]


def flat(value: Any) -> list[float]:
    """A number, or the numbers of several candidates."""
    return [number for one in value for number in flat(one)] if isinstance(value, list) else [value]
