"""A resumed run reads the data that it began with, or says which file is another."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lossbook.cookbook import sft
from lossbook.cookbook.cli import main
from lossbook.cookbook.run.data_digest import check_data, data_digests
from lossbook.cookbook.run.runs import open_run
from lossbook.datums.errors import DataFileError, RunError

ROWS = [{"prompt": f"{a} + {b} = ", "completion": str(a + b)} for a in range(3) for b in range(3)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def stopped(tmp_path: Path) -> sft.SFTConfig:
    """The settings of a run of two steps that is to go on to four."""
    data, held_out = write(tmp_path / "train.jsonl", ROWS), write(tmp_path / "eval.jsonl", ROWS[:2])
    config = sft.SFTConfig(
        data=str(data),
        eval_data=str(held_out),
        out=tmp_path / "run",
        steps=2,
        batch_size=2,
        rank=2,
        schedule="constant",
    )
    sft.main(config)
    return config.model_copy(update={"steps": 4, "resume": True})


@pytest.mark.parametrize("name", ["train.jsonl", "eval.jsonl"])
def test_a_run_does_not_go_on_with_a_file_that_was_edited(
    name: str, stopped: sft.SFTConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tmp_path / name).read_text(encoding="utf-8")
    write(tmp_path / name, [{**ROWS[0], "completion": "5"}, *ROWS[1:2]])
    with pytest.raises(RunError, match=rf"{name} has changed since the run in .* began.*--changed-data"):
        sft.main(stopped)
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    assert metrics.count("\n") == 4, "steps 1 and 2, and the evaluations before and after"
    (tmp_path / name).write_text(before, encoding="utf-8")
    assert sft.main(stopped)["step"] == 4


def test_the_flag_goes_on_and_from_then_on_the_new_data_count(
    stopped: sft.SFTConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "train.jsonl", ROWS[1:])
    assert sft.main(stopped.model_copy(update={"changed_data": True}))["step"] == 4
    assert "going on with changed data (--changed-data): " in capsys.readouterr().out
    assert sft.main(stopped.model_copy(update={"steps": 5}))["step"] == 5
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(RunError, match=r"train.jsonl has changed"):
        sft.main(stopped.model_copy(update={"steps": 6}))


def test_the_command_line_has_the_flag_and_wants_resume_with_it(
    stopped: sft.SFTConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "train.jsonl", ROWS[1:])
    command = ["train", "sft", "--config", str(tmp_path / "run" / "config.json"), "--steps", "4"]
    assert main([*command, "--resume"]) == 1
    assert "train.jsonl has changed since the run" in capsys.readouterr().err
    assert main([*command, "--resume", "--changed-data"]) == 0
    assert main([*command, "--changed-data"]) == 2
    assert "changed_data is for --resume only" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_reads_the_data_as_they_are(tmp_path: Path) -> None:
    data = write(tmp_path / "train.jsonl", ROWS)
    run = open_run(tmp_path / "run", {})
    check_data(run, data_digests([data]))
    write(data, ROWS[1:])
    check_data(open_run(tmp_path / "run", {}, resume=True), data_digests([data]))
    assert (run.path / "data_digest.json").exists()


def test_files_of_a_pattern_that_come_or_go_are_named(stopped: sft.SFTConfig, tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", stopped.settings(), resume=True, may_change=("steps",))
    a, b = write(tmp_path / "part-a.jsonl", ROWS), write(tmp_path / "part-b.jsonl", ROWS)
    check_data(run, data_digests([str(tmp_path / "part-*.jsonl")]), changed_data=True)
    b.rename(tmp_path / "part-c.jsonl")
    with pytest.raises(RunError, match=r"part-b.jsonl is gone; .*part-c.jsonl is new since"):
        check_data(run, data_digests([str(tmp_path / "part-*.jsonl")]))
    assert set(data_digests([a, str(b.with_name("part-c.jsonl"))])) == {str(a), str(tmp_path / "part-c.jsonl")}


def test_a_data_set_on_the_hub_is_compared_by_its_commit(
    stopped: sft.SFTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    commits = iter(["a1", "a1", OSError("no network"), "b2"])

    def info(api: Any, name: str) -> Any:
        assert name == "someone/something"
        commit = next(commits)
        if isinstance(commit, OSError):
            raise commit
        return SimpleNamespace(sha=commit)

    monkeypatch.setattr(hub.HfApi, "dataset_info", info)
    run = open_run(tmp_path / "run", stopped.settings(), resume=True, may_change=("steps",))
    source = "datasets:someone/something:train"
    check_data(run, data_digests([source]), changed_data=True)
    check_data(run, data_digests([source]))
    check_data(run, data_digests([source]))  # the hub does not answer, so nothing can be compared
    with pytest.raises(RunError, match="datasets:someone/something has changed since"):
        check_data(run, data_digests([source]))


def test_a_saved_folder_is_compared_file_by_file(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    for source in (tmp_path / "saved", f"datasets:{tmp_path / 'saved'}", [str(tmp_path / "saved")]):
        assert any(name.endswith(".arrow") for name in data_digests([source]))
    assert data_digests([None]) == {}


def test_a_missing_file_is_an_error_before_the_folder_is_made(tmp_path: Path) -> None:
    config = sft.SFTConfig(data=str(tmp_path / "none.jsonl"), out=tmp_path / "run")
    with pytest.raises(DataFileError, match="No such file"):
        sft.main(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_digest_says_what_to_do(text: str, stopped: sft.SFTConfig, tmp_path: Path) -> None:
    (tmp_path / "run" / "data_digest.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=r"data_digest.json is damaged.*Delete it to go on"):
        sft.main(stopped)
