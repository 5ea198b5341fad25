"""A run's records say where its numbers come from, part by part, and hold no secret."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import lossbook
from lossbook.cookbook import sft
from lossbook.cookbook.run.provenance import command_line, read_provenance
from lossbook.cookbook.run.runs import open_run
from lossbook.cookbook.sft import SFTConfig
from lossbook.datums.errors import DataFileError

SECRET = "a-secret-of-the-environment"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a git repository with one commit."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "notes.txt").write_text("first\n")
    monkeypatch.chdir(folder)
    for name, value in (("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_NOSYSTEM", "1")):
        monkeypatch.setenv(name, value)
    git("init", "-q")
    git("add", "notes.txt")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first")
    return folder


def git(*words: str) -> str:
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def config(folder: Path, **changes: Any) -> SFTConfig:
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": a, "completion": b}) + "\n" for a, b in ("ab", "cd", "ef")))
    return SFTConfig(**{"data": data, "out": folder / "run", "rank": 2, "steps": 2, "batch_size": 2, **changes})


def test_a_run_records_each_of_its_parts_with_command_versions_device_commit_and_time(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_API_KEY", SECRET)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/lossbook", "train", "sft", f"--model={SECRET}", "--out", "a run"])
    before = datetime.now(UTC).replace(microsecond=0)
    sft.main(config(repository))
    (repository / "notes.txt").write_text("second\n")
    sft.main(config(repository, resume=True, steps=3))
    first, second = read_provenance(repository / "run")
    assert before <= datetime.fromisoformat(first.date) <= datetime.fromisoformat(second.date) <= datetime.now(UTC)
    assert first.command == "lossbook train sft '--model=[redacted]' --out 'a run'"
    assert SECRET not in (repository / "run" / "provenance.json").read_text()
    assert (first.versions["lossbook"], first.versions["python"]) == (lossbook.__version__, platform.python_version())
    assert (
        first.versions["torch"] == torch.__version__.partition("+")[0] or first.versions["torch"] == torch.__version__
    )
    assert first.versions["transformers"] == transformers.__version__
    assert (first.commit, first.dirty, second.dirty) == (git("rev-parse", "HEAD"), False, True)
    assert first.device.startswith("cpu")
    assert 0 < first.parameters_trained < (first.parameters or 0)
    assert (first.dtype, first.rows) == ("float32", 3)
    assert [(part.steps, part.from_step, part.to_step) for part in (first, second)] == [(2, 0, 2), (3, 2, 3)]
    assert 0 < first.seconds < 600
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith(f"tiny: {first.parameters_trained:,} of {first.parameters:,} parameters trained on cpu")
    sft.main(config(repository, overwrite=True))
    assert [part.to_step for part in read_provenance(repository / "run")] == [2]


def test_outside_a_repository_or_without_git_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("PATH", str(tmp_path))
    sft.main(config(tmp_path))
    (part,) = read_provenance(tmp_path / "run")
    assert (part.commit, part.dirty) == (None, False)


def test_a_run_without_provenance_is_read_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", {})
    assert read_provenance(run.path) == []
    (run.path / "provenance.json").write_text('{"parts": [{"date": 1}]}')
    with pytest.raises(DataFileError, match=r"^provenance\.json is damaged: parts\.0\.date: "):
        read_provenance(run.path)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["/opt/bin/lossbook", "train", "sft"], "lossbook train sft"),
        (["run.py", "--name", "two words"], "run.py --name 'two words'"),
        (
            ["lossbook", "--hub-token", "short", "--api-key=short", "--steps", "3"],
            "lossbook --hub-token '[redacted]' '--api-key=[redacted]' --steps 3",
        ),
        (["lossbook", "--url", "https://me:pass@host/x"], "lossbook --url 'https://[redacted]@host/x'"),
        ([], "python"),
    ],
)
def test_a_command_line_is_one_for_a_shell_and_without_secrets(words: list[str], line: str) -> None:
    assert command_line(words) == line
