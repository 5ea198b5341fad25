"""A configuration file works from any folder: what it names is found in the working folder, else beside it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from lossbook.cookbook.cli import main
from lossbook.cookbook.settings.distill import DistillConfig
from lossbook.cookbook.settings.preferences import DPOConfig
from lossbook.cookbook.settings.written.files import read_config

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def written(folder: str, text: str) -> Path:
    Path(folder).mkdir()
    path = Path(folder, "run.toml")
    path.write_text(text)
    return path


def test_what_lies_beside_the_file_is_taken_where_the_working_folder_has_no_such() -> None:
    text = 'data = "rows.jsonl"\neval_data = "parts/*.jsonl"\nout = "run"\nmodel = "tiny"\nreferences = "cache"\n'
    path = written("configs", text)
    for name in (
        "configs/rows.jsonl",
        "configs/parts/a.jsonl",
        "configs/tiny/config.json",
        "configs/cache/a",
        "configs/run/a",
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("{}\n")
    values = read_config(path, DPOConfig)
    assert (values["data"], values["eval_data"]) == ("configs/rows.jsonl", "configs/parts/*.jsonl")
    assert (values["model"], values["out"], values["references"]) == ("tiny", Path("run"), Path("cache"))
    Path("rows.jsonl").write_text("{}\n")
    assert read_config(path, DPOConfig)["data"] == "rows.jsonl"


@pytest.mark.parametrize("value", ["datasets:a/b:train", "rows.jsonl", "a\\u0000b", "x" * 5000, "/nowhere/rows.jsonl"])
def test_what_lies_nowhere_stays_as_it_was_written(value: str) -> None:
    assert read_config(written("configs", f'data = "{value}"\n'), DPOConfig)["data"] == json.loads(f'"{value}"')


def test_a_run_beside_the_file_is_found_as_a_teacher_and_self_is_no_folder() -> None:
    path = written("configs", 'teacher = "runs/sft"\nstart_from = "runs/sft"\n')
    (path.parent / "runs" / "sft").mkdir(parents=True)
    (path.parent / "self").mkdir()
    values = read_config(path, DistillConfig)
    assert (values["teacher"], values["start_from"]) == ("configs/runs/sft", Path("configs/runs/sft"))
    path.write_text('teacher = "self"\n')
    assert read_config(path, DistillConfig)["teacher"] == "self"


def test_the_examples_run_from_any_folder_and_their_runs_say_which_files_they_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(EXAMPLES, "clone/examples", ignore=shutil.ignore_patterns("gallery", "notebooks"))
    values = read_config(Path("clone/examples/dpo.toml"), DPOConfig)
    assert (values["data"], values["eval_data"]) == tuple(
        f"clone/examples/pairs{end}.jsonl" for end in ("", "_held_out")
    )
    small = ["--problems-per-step", "2", "--group-size", "2", "--task-size", "4", "--held-out", "0", "--steps", "1"]
    assert main(["train", "rl", "--config", "clone/examples/rl.toml", *small]) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "runs" / "rl" / "config.json").read_text())["reward"] == "rewards:brief_count"
