"""`lossbook runs list` and `lossbook runs compare`, on folders written by hand as runs write them."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lossbook.cookbook.cli import main

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_run(
    folder: Path, numbers: Mapping[str, list[float]], *, steps: int = 2, finished: bool = True, **settings: Any
) -> Path:
    """A run with these metrics, one value per step from step 1."""
    folder.mkdir(parents=True)
    given = {
        "model": "tiny",
        "loss": "dpo",
        "loss_config": {},
        "seed": 0,
        "steps": steps,
        "references": None,
        **settings,
    }
    (folder / "config.json").write_text(json.dumps({**given, "out": str(folder)}))
    rows = [{key: values[i] for key, values in numbers.items()} for i in range(len(next(iter(numbers.values()))))]
    lines = [json.dumps({"step": i, **row}) + "\n" for i, row in enumerate(rows, start=1)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    if finished:
        (folder / "adapter").mkdir()
    return folder


@pytest.fixture
def sweep(here: Path) -> Path:
    """Two losses at three seeds; held-out accuracy 0.5, 0.6, 0.7 and 0.6, 0.6, 0.9."""
    finals = {"dpo": (0.5, 0.6, 0.7), "simpo": (0.6, 0.6, 0.9)}
    for loss, values in finals.items():
        for seed, value in enumerate(values):
            numbers = {"held_out_accuracy": [0.1, value], "held_out_kl": [0.0, 0.2], "loss": [1.0, 0.5]}
            write_run(here / "runs" / "sweep" / f"{loss}-{seed}", numbers, loss=loss, seed=seed)
    return here / "runs" / "sweep"


def test_runs_that_differ_in_seeds_alone_are_one_mean_with_its_interval(sweep: Path, capsys: Captured) -> None:
    assert main(["runs", "compare", str(sweep), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    dpo, simpo = shown["groups"]
    assert [dpo["label"], simpo["label"]] == ["loss=dpo", "loss=simpo"]
    assert dpo["seeds"] == [0, 1, 2]
    accuracy = dpo["numbers"]["held_out_accuracy"]
    # by hand: mean 0.6, standard deviation 0.1, t = 4.3027 at 2 degrees of freedom: half of 4.3027 * 0.1 / sqrt(3) = 0.2484
    assert (accuracy["mean"], accuracy["n"]) == (pytest.approx(0.6), 3)
    assert accuracy["interval"] == pytest.approx([0.6 - 0.24841, 0.6 + 0.24841], abs=1e-4)
    # by hand: differences 0.1, 0.0, 0.2: mean 0.1, standard deviation 0.1
    difference = simpo["numbers"]["held_out_accuracy"]["minus_first"]
    assert difference["mean"] == pytest.approx(0.1)
    assert difference["interval"] == pytest.approx([0.1 - 0.24841, 0.1 + 0.24841], abs=1e-4)
    assert shown["best"] == {"held_out_accuracy": ["loss=simpo"], "held_out_kl": []}  # a distance has no direction
    assert shown["directions"]["held_out_accuracy"] == "higher"
    assert "loss" not in dpo["numbers"]  # values of different losses say nothing about each other


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_comparison_fits_and_marks_the_best(
    width: int, sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["runs", "compare", str(sweep)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    (best,) = [line.split() for line in lines if "* " in line and line.startswith("loss=")]
    assert best == ["loss=simpo", "*", "0.7", "0.43", "3", "+0.1", "±", "0.25"]
    assert "held_out_accuracy, higher is better" in lines


def test_a_comparison_as_markdown_has_a_row_per_setting(sweep: Path, capsys: Captured) -> None:
    assert main(["runs", "compare", str(sweep), "--markdown", "--keys", "held_out_accuracy"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "|  | n | held_out_accuracy ↑ |",
        "| --- | ---: | ---: |",
        "| loss=dpo | 3 | 0.6 ± 0.25 |",
        "| loss=simpo | 3 | **0.7 ± 0.43** |",
    ]


def test_settings_that_differ_are_said_also_where_they_are_too_long_for_a_label(here: Path, capsys: Captured) -> None:
    numbers = {"held_out_nll": [2.0, 1.0], "nll": [2.0, 1.0]}
    long = "a rather long system message that fills a whole line of its own and more"
    first = write_run(here / "first", numbers, seed=0, system=long, loss_config={"beta": 0.1})
    second = write_run(here / "second", numbers, seed=0, loss_config={"beta": 0.5})
    assert main(["runs", "compare", str(first), str(second)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"first has loss_config.beta=0.1, system={long}" in shown
    assert "± 95 %" not in shown  # one seed each: no interval


def test_two_runs_of_one_seed_are_not_two_samples(here: Path, capsys: Captured) -> None:
    numbers = {"held_out_nll": [2.0, 1.0], "nll": [2.0, 1.0]}
    folders = [str(write_run(here / name, numbers)) for name in ("one", "two")]
    assert main(["runs", "compare", *folders, "--json"]) == 0
    assert [group["label"] for group in json.loads(capsys.readouterr().out)["groups"]] == ["one", "two"]


def test_a_damaged_run_is_one_line_and_the_others_are_compared(sweep: Path, capsys: Captured) -> None:
    (sweep / "dpo-1" / "metrics.jsonl").write_text("{damaged\n")
    assert main(["runs", "compare", str(sweep)]) == 1
    shown = capsys.readouterr()
    assert "loss=simpo" in shown.out
    (line,) = shown.err.splitlines()
    assert line.startswith(f"left out: {sweep / 'dpo-1'}: metrics.jsonl, line 1")


def test_every_state_is_listed_with_the_last_number(here: Path, capsys: Captured) -> None:
    runs = here / "runs"
    numbers = {"held_out_nll": [2.0, 1.5]}
    write_run(runs / "done", numbers)
    write_run(runs / "cut", numbers, steps=9, finished=False)
    write_run(runs / "deep" / "er" / "going", numbers, steps=9, finished=False)
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": "now", "id": "x"}
    (runs / "deep" / "er" / "going" / "in_use.json").write_text(json.dumps(owner))
    write_run(runs / "killed", numbers, steps=9, finished=False)
    (runs / "killed" / "in_use.json").write_text(json.dumps({**owner, "pid": 2**22 + 1}))  # no such process
    write_run(runs / "broken", numbers)
    (runs / "broken" / "config.json").write_text("{")
    (runs / "a-model").mkdir()
    (runs / "a-model" / "config.json").write_text('{"model_type": "llama"}')
    assert main(["runs", "list", "--json"]) == 0
    states = {Path(run["folder"]).name: run["state"] for run in json.loads(capsys.readouterr().out)}
    assert states == {
        "done": "finished",
        "cut": "interrupted",
        "going": "running",
        "killed": "interrupted",
        "broken": "damaged",
    }
    assert main(["runs", "list", "--sort", "name"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["run", "state", "steps"]
    assert lines[0].split()[:5] == ["cut", "interrupted", "2/9", "held_out_nll", "1.5"]
    assert any(line.startswith("damaged: broken: ") and "config.json" in line for line in lines)


def test_a_list_is_sorted_by_a_metric_best_first(sweep: Path, capsys: Captured) -> None:
    assert main(["runs", "list", "--sort", "held_out_accuracy", "--json"]) == 0
    values = [run["numbers"]["held_out_accuracy"] for run in json.loads(capsys.readouterr().out)]
    assert values == sorted(values, reverse=True)
    assert main(["runs", "list", "--sort", "held_out_acuracy"]) == 2
    assert "Did you mean 'held_out_accuracy'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["report", "compare", "plot"])
def test_a_command_without_a_run_names_those_that_there_are(command: str, sweep: Path, capsys: Captured) -> None:
    assert main(["runs", command]) == 2
    shown = capsys.readouterr().err
    assert f"lossbook runs {command} RUN. There are {Path('runs/sweep/dpo-0')}" in shown
    assert main(["runs", command, "runs/sweeep"]) == 1
    assert "there is no folder runs/sweeep" in capsys.readouterr().err


def test_where_there_are_no_runs_the_list_says_how_to_make_one(here: Path, capsys: Captured) -> None:
    assert main(["runs", "list"]) == 0
    assert "lossbook train sft" in capsys.readouterr().out
    assert main(["runs", "list", "nowhere"]) == 1
    assert main(["runs", "compare"]) == 2
    assert "There are no runs here yet" in capsys.readouterr().err
