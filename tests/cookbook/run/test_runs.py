"""A run's folder: two runs are never mixed, and what was recorded can be read again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lossbook.cookbook.run.runs import open_run, read_metrics, read_settings
from lossbook.datums.errors import DataFileError, RunError


def begun(path: Path, **settings: object) -> Path:
    """A folder with a run of one step."""
    open_run(path, settings).log(1, {"loss": 2.0})
    return path


def test_metrics_come_back_and_what_json_has_no_word_for_is_null_in_the_file(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", {})
    run.log(0, {"held_out_score": 0.25})
    run.log(1, {"loss": math.inf, "tokens": 3.0})
    assert "Infinity" not in run.metrics.read_text()
    first, second = read_metrics(run.metrics)
    assert first == {"step": 0, "held_out_score": 0.25}
    assert second["step"] == 1
    assert math.isnan(second["loss"])


def test_a_last_line_that_a_killed_process_left_unfinished_is_dropped_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    with pytest.warns(UserWarning, match="unfinished last line"):
        rows = read_metrics(path)
    assert [row["step"] for row in rows] == [1]


@pytest.mark.parametrize("line", ["{not json}", "[1, 2]", '{"loss": 1.0}', ""])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(DataFileError, match="line 2: not a row of metrics"):
        read_metrics(path)


def test_a_folder_that_holds_anything_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all I have")
    with pytest.raises(RunError, match=r"--resume to continue .* --overwrite to replace .* another folder"):
        open_run(tmp_path, {})


def test_a_run_that_recorded_nothing_may_be_begun_again(tmp_path: Path) -> None:
    open_run(tmp_path / "run", {"data": "misspelt.jsonl"})
    run = open_run(tmp_path / "run", {"data": "train.jsonl"})
    assert read_settings(run.path) == {"data": "train.jsonl"}


def test_overwrite_deletes_the_run_and_nothing_else(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run", seed=0)
    (folder / "notes.txt").write_text("keep me")
    run = open_run(folder, {"seed": 1}, overwrite=True)
    assert read_metrics(run.metrics) == []
    assert (folder / "notes.txt").read_text() == "keep me"


def test_overwrite_refuses_a_folder_that_holds_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all I have")
    with pytest.raises(RunError, match="holds no run"):
        open_run(tmp_path, {}, overwrite=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "holds no run.*Is --out the folder of the run", id="there is no run to continue"),
        pytest.param("{", "damaged", id="its settings are no JSON"),
        pytest.param("[]", "damaged", id="its settings are no settings"),
    ],
)
def test_resume_needs_a_run(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunError, match=message):
        open_run(tmp_path, {}, resume=True)


def test_resume_refuses_other_settings_and_names_them(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run", seed=0, steps=10, out=None)
    open_run(folder, {"seed": 0, "steps": 20, "out": None}, resume=True, may_change=["steps"])
    with pytest.raises(RunError, match=r"seed was 0, is 1\. Take its settings with --config"):
        open_run(folder, {"seed": 1, "steps": 20, "out": None}, resume=True, may_change=["steps"])


def test_settings_that_were_added_since_a_run_began_have_their_defaults_there(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run", seed=0)
    now = {"seed": 0, "lora_alpha": 32.0, "names": ()}
    open_run(folder, now, resume=True, defaults={"seed": 7, "lora_alpha": 32.0, "names": ()}).release()
    with pytest.raises(
        RunError, match=r"other settings, so it cannot be continued: lora_alpha was 32\.0, is 8\.0\. Take"
    ):
        open_run(folder, {**now, "lora_alpha": 8.0}, resume=True, defaults={"lora_alpha": 32.0, "names": ()})


def test_settings_that_only_the_earlier_run_has_are_named(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run", seed=0, pooling="mean")
    with pytest.raises(
        RunError, match=r"settings that this lossbook or recipe does not have: pooling\. Continue the run with"
    ):
        open_run(folder, {"seed": 0}, resume=True)


def test_resume_and_overwrite_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="choose one"):
        open_run(tmp_path, {}, resume=True, overwrite=True)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="is a file"):
        open_run(tmp_path / "run", {})


def test_a_name_that_no_folder_can_have_is_refused() -> None:
    with pytest.raises(RunError, match="is no folder's name"):
        open_run("a\0b", {}, later=True)


def test_metrics_after_the_step_that_is_resumed_are_forgotten(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", {})
    for step in range(4):
        run.log(step, {"loss": float(step)})
    run.forget_after(2)
    assert [row["step"] for row in read_metrics(run.metrics)] == [0, 1, 2]
    run.log(3, {"loss": 3.0})
    assert len(read_metrics(run.metrics)) == 4
    run.forget_after(0)  # nothing was saved, so even the evaluation before the first step is made again
    assert read_metrics(run.metrics) == []


def test_settings_are_the_json_that_config_takes_back(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", {"loss": "ppo", "steps": None})
    assert json.loads((run.path / "config.json").read_text()) == {"loss": "ppo", "steps": None}


def test_a_run_that_is_opened_for_later_changes_nothing_until_something_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    open_run(folder, {"seed": 0}, later=True)
    assert not folder.exists()
    open_run(folder, {"seed": 0}).log(1, {"loss": 2.0})
    run = open_run(folder, {"seed": 1}, overwrite=True, later=True)
    assert (read_settings(folder), len(read_metrics(run.metrics))) == ({"seed": 0}, 1)
    run.log(7, {"loss": 3.0})
    assert (read_settings(folder), [row["step"] for row in read_metrics(run.metrics)]) == ({"seed": 1}, [7])
    open_run(folder, {"seed": 1}, resume=True, later=True).log(8, {"loss": 3.0})
    assert [row["step"] for row in read_metrics(run.metrics)] == [7, 8]
