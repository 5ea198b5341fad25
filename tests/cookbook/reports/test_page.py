"""A report is one page that needs nothing beside it, shows what was recorded, and runs no code but its own."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError

import lossbook as lb
from lossbook.cookbook.cli import main
from lossbook.cookbook.inspect.token_records import record_loss, record_sequences
from lossbook.cookbook.pages.render import render
from lossbook.cookbook.reports.page import report_page
from lossbook.cookbook.run.provenance import Provenance, provenance_text
from lossbook.cookbook.run.runs import Run, open_run
from lossbook.cookbook.tasks.held_out import warn_of_repeated_rows
from lossbook.datums.errors import DataFileError, RunError
from lossbook.datums.files.report import DataReport, survey
from lossbook.trainer.responses import ForwardBackwardOutput

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`${alert(3)}"


class Tokenizer:
    """Each id is a letter; 0 is an attack."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(EVIL if i == 0 else chr(96 + i) for i in ids)


class Tags(HTMLParser):
    """The tags of a page, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:
            self.words.append(data)


def make_run(folder: Path, **settings: Any) -> Path:
    """A short policy run with everything a folder can hold."""
    run = open_run(folder, {"loss": "ppo", "model": "tiny", "loss_config": {"clip_high": 1.28}, **settings})
    run.write("data_report.json", json.dumps({"rows": 6, "problems": {"too long": {"count": 1}}}))
    datum = lb.Datum(
        lb.ModelInput.from_ints([1, 2, 0]),
        {
            "target_tokens": [2, 0, 4],
            "weights": [0.0, 1.0, 1.0],
            "sampling_logprobs": [-1.0, -1.0, -1.5],
            "advantages": [1.0, 1.0, 1.0],
        },
    )
    output = ForwardBackwardOutput([{"logprobs": lb.TensorData(np.array([0, -1, -1], np.float32))}])
    loss = lb.get_loss("ppo", clip_high=1.28, reduction="token-mean")
    record_loss(run, loss)
    for step in range(1, 13):
        run.log(
            step, {"loss": 1 / step, "reward": step / 12, "clip_fraction": 0.9, "grad_norm": 1.0, "response_tokens": 2}
        )
        if step in (1, 12):
            record_sequences(run, step, loss, [datum], output, Tokenizer())
    run.append("samples.jsonl", {"step": 12, "prompt": "2 + 3?", "answer": EVIL, "reward": 1.0})
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = make_run(tmp_path_factory.mktemp("runs") / "first", data=EVIL)
    return report_page({EVIL: folder})


def test_nothing_from_data_becomes_markup(page: str) -> None:
    parsed = Tags(page)
    assert [tag for tag, _ in parsed.tags].count("script") == 2  # the page's data, and its own script
    assert not any(tag in ("img", "iframe", "object", "link", "a", "form") for tag, _ in parsed.tags)
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert "alert(1)" in "".join(parsed.words)  # it is there to be read


def test_the_page_asks_for_nothing(page: str) -> None:
    for _, attributes in Tags(page).tags:
        assert not {"src", "href", "srcset", "action"}.intersection(attributes)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", page)


def test_its_policy_allows_its_own_script_alone(page: str) -> None:
    (policy,) = [a["content"] or "" for tag, a in Tags(page).tags if a.get("http-equiv") == "Content-Security-Policy"]
    own = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(own) == 1
    digest = base64.b64encode(hashlib.sha256(own[0].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}';" in policy


def test_the_page_shows_what_was_recorded(page: str) -> None:
    words = html.unescape(re.sub(r"<[^>]*>", " ", page))
    for said in (
        "Many tokens are clipped",  # a diagnostic
        "arXiv:1707.06347 eq. 7",  # its source, and the loss's
        "ppo(reduction='token-mean', clip_low=0.8, clip_high=1.28",  # the loss as it was trained
        "step 12: sequence 1 of 1",
        "problems: too long: count",
        "2 + 3?",
    ):
        assert said in words


def test_the_data_of_the_script_are_the_curves(page: str) -> None:
    (written,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    data = json.loads(written)
    assert page.count('<figure class="chart">') == len(data["charts"])
    (reward,) = [c for chart in data["charts"] for c in chart["curves"] if c["label"] == "reward"]
    assert reward["steps"] == list(range(1, 13))
    assert reward["values"][-1] == 1.0


def test_each_recorded_step_has_a_button_and_its_sequences(page: str) -> None:
    assert re.findall(r'<button type="button" data-step="(\d+)"', page) == ["1", "12"]
    assert re.findall(r'<div class="step" data-step="(\d+)"', page) == ["1", "12"]
    assert page.count('class="tv-sequence"') == 2


def test_a_clipped_token_has_no_gradient_colour_and_the_other_has_one(page: str) -> None:
    tips = [html.unescape(tip) for tip in re.findall(r'data-tip="([^"]*)"', page)]
    clipped = next(tip for tip in tips if tip.startswith("token 4"))  # ratio exp(0.5) = 1.65, beyond 1.28
    assert "ratio 1.649" in clipped
    assert "gradient 0" in clipped.splitlines()
    assert any("gradient -0.5" in tip.splitlines() for tip in tips)


def test_several_runs_share_their_curves_and_show_what_differs(tmp_path: Path) -> None:
    folders = {name: make_run(tmp_path / name, rank=rank) for name, rank in (("low", 4), ("high", 64))}
    page = report_page(folders)
    words = re.sub(r"<[^>]*>", " ", page)
    assert re.search(r"rank\s+4\s+64", words)
    assert page.count('class="records"') == 2
    names = re.findall(r'<input type="radio" name="([^"]*)"', page)
    assert set(names) == {"m0s1", "m0s12", "m1s1", "m1s12"}  # each switch is a group of its own
    (written,) = re.findall(r'id="data">(.*?)</script>', page, re.S)
    assert {c["label"] for chart in json.loads(written)["charts"] for c in chart["curves"]} == {"low", "high"}


def test_runs_of_several_seeds_are_one_row_of_final_numbers_with_an_interval(tmp_path: Path) -> None:
    folders = {
        f"{loss}{seed}": make_run(tmp_path / f"{loss}{seed}", loss=loss, seed=seed, out=str(tmp_path / f"{loss}{seed}"))
        for loss in ("ppo", "grpo")
        for seed in (0, 1, 2)
    }
    words = html.unescape(re.sub(r"<[^>]*>", " ", report_page(folders)))
    assert "Final numbers" in words
    assert re.search(r"loss=ppo \(3 runs\)\s+0\.9583 ± 0", words)  # the mean of steps 11 and 12, the same for each seed
    assert "loss=grpo (3 runs): grpo0, grpo1, grpo2" in words


def test_the_headline_says_which_steps_a_number_is_of(page: str) -> None:
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))
    assert "reward 0.958 mean of steps 11–12 0.125 at the start (mean of steps 1–2)" in words


def test_the_page_says_where_its_numbers_come_from(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert "No provenance.json" in report_page({"run": folder})
    one = Provenance(
        date="2026-01-02T03:04:05+00:00",
        command="lossbook train rl --steps 12",
        versions={"lossbook": "0.1.0", "python": "3.11.9", "torch": "2.13.0"},
        platform="Linux x86_64",
        device="cpu (a processor)",
        commit="abc123",
        dirty=True,
        parameters_trained=1000,
        parameters=50000,
        dtype="float32",
        rows=6,
        steps=12,
        to_step=8,
        seconds=100.0,
    )
    later = dataclasses.replace(one, date="2026-01-03T00:00:00+00:00", from_step=8, to_step=12, seconds=20.0)
    Run(folder).write("provenance.json", provenance_text([one, later]))
    words = html.unescape(re.sub(r"<[^>]*>", " ", report_page({"run": folder})))
    for said in (
        "2026-01-02 03:04:05 UTC",
        "2:00 min, without loading, until step 12",
        "continued from step 8",
        "lossbook 0.1.0, python 3.11.9, torch 2.13.0",
        "cpu (a processor); Linux x86_64",
        "abc123, with changes",
        "1,000 of 50,000 (2.00%)",
    ):
        assert said in words


def test_what_the_data_report_knows_stands_among_what_looks_wrong(tmp_path: Path) -> None:
    trained, held_out = DataReport(), DataReport()
    for report, texts in ((trained, ["ab", "ab", "cd"]), (held_out, ["cd", "ef"])):
        make = lambda text: lb.datum_from_tokens_weights([ord(c) for c in text], [0.0, 1.0])  # noqa: E731
        assert list(survey(texts, make, report))
    warn_of_repeated_rows(held_out, trained)
    folder = make_run(tmp_path / "run")
    (folder / "data_report.json").write_text(trained.to_json())
    words = html.unescape(re.sub(r"<[^>]*>", " ", report_page({"run": folder})))
    assert "1 held-out rows also occur in the training data (row 0 is row 2)" in words
    assert "1 of 3 rows equal an earlier one (row 1 repeats row 0)" in words


def test_a_run_with_nothing_but_numbers_has_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "my_metric": 2.0, "loss": null}\n')
    words = re.sub(r"<[^>]*>", " ", report_page({"bare": tmp_path}))
    for said in ("No sequences.jsonl", "No data_report.json", "No config.json", "A number is not finite"):
        assert said in words


def test_a_loss_of_a_users_module_is_shown_but_not_imported(tmp_path: Path) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    folder = make_run(tmp_path / "run", loss="trap:loss")
    (folder / "loss.json").unlink()
    assert "The run recorded no card for this loss, and trap:loss is not registered" in report_page({"run": folder})


def steep(logprobs: torch.Tensor, *, slope: float = 3.0) -> torch.Tensor:
    """-slope logprobs <b>: cross-entropy, but steeper."""
    return -slope * logprobs


def test_the_card_of_a_users_loss_has_the_settings_of_the_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    record_loss(Run(folder), 0.25 * lb.get_loss(steep, slope=7.0) + lb.get_loss("cross_entropy"))
    page = report_page({"run": folder})
    words = html.unescape(re.sub(r"<[^>]*>", " ", page))
    assert "card of 0.25 × " in words
    assert "-slope logprobs <b>: cross-entropy, but steeper." in words
    assert re.search(r"slope\s+7\s+float", words)
    assert "card of cross_entropy" in words


def test_without_a_record_a_registered_loss_has_its_card_with_default_settings(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "loss.json").unlink()
    words = re.sub(r"<[^>]*>", " ", report_page({"run": folder}))
    assert "default settings" in words
    assert "card of ppo" in words


def test_damaged_files_and_folders_without_a_run_are_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "data_report.json").write_text("{")
    with pytest.raises(DataFileError, match=r"data_report\.json is damaged"):
        report_page({"run": folder})
    (folder / "data_report.json").unlink()
    (folder / "loss.json").write_text('{"loss": "x", "parts": [{}]}')
    with pytest.raises(DataFileError, match=r"loss\.json is damaged"):
        report_page({"run": folder})
    with pytest.raises(RunError, match=r"holds no metrics\.jsonl"):
        report_page({"none": tmp_path})


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert report_page({"run": folder}) == report_page({"run": folder})


def test_the_command_writes_the_page_into_the_runs_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run")
    assert main(["runs", "report", str(folder)]) == 0
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert main(["runs", "report", str(folder), "--out", "report.txt"]) == 2
    assert "must end in .html" in capsys.readouterr().err
    assert main(["runs", "report"]) == 2


NAMES = ("loss", "nll", "grad_norm", "grad_norm_clipped", "reward", "held_out_nll", "ref_kl", "clip_fraction", "datums")
NAMES += ("sampler_entropy", "response_length", "chosen_reward", "rejected_reward", "in_batch_recall_at_1", "x/loss")


#: What the template of a report prints.
BLANKS = ("title", "body", "data", "digest", "css", "script")


@settings(max_examples=60, deadline=None)
@example([{"loss": 4.0}, {"loss": 2.2250738585072014e-308}])
@example([{"loss": 5e-324}, {"loss": 1.7e308}])
@given(
    st.lists(
        st.dictionaries(st.sampled_from(NAMES), st.one_of(st.floats(), st.integers(), st.text(max_size=3), st.none())),
        max_size=40,
    )
)
def test_whatever_the_numbers_there_is_a_page_of_finite_curves(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = [json.dumps({"step": step, "loss": 1.0, **row}) for step, row in enumerate(rows, start=1)]
        (Path(folder) / "metrics.jsonl").write_text("\n".join(['{"step": 0}', *lines]) + "\n")
        page = report_page({"run": folder})
    curves = "".join(re.findall(r'points="[^"]*"|[xy]\d?="[^"]*"', page))
    assert "nan" not in curves
    assert "inf" not in curves


@given(st.text())
def test_no_text_ends_the_data_block_or_becomes_markup(written: str) -> None:
    page = render("report", title=written, body=written, data=[written], digest=written, css=written, script=written)
    assert len(Tags(page).tags) == len(Tags(render("report", **dict.fromkeys(BLANKS, "x"))).tags)
    block = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert block is not None
    assert json.loads(block[1]) == [written]


@pytest.mark.parametrize("left_out", sorted({*BLANKS} - {"data"}))
def test_a_value_that_a_template_lacks_is_an_error(left_out: str) -> None:
    with pytest.raises(UndefinedError, match=left_out):
        render("report", **{name: "x" for name in BLANKS if name != left_out})
