"""`lossbook losses new`: the files it writes work as they stand, and it hides and overwrites nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lossbook.cookbook.cli import main
from lossbook.cookbook.scaffold.new_loss import TEMPLATES
from lossbook.losses import unregister_loss


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def test_a_new_loss_is_written_with_its_test_and_keeps_the_laws(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", "new", "written_today", "--per", "pair"]) == 0
    shown = capsys.readouterr().out
    assert "a preference loss per pair" in shown
    assert sorted(path.name for path in here.iterdir()) == ["test_written_today.py", "written_today.py"]
    assert "NAME" not in "".join(path.read_text() for path in here.iterdir())
    commands = re.findall(r"^  lossbook (.*)$", shown, re.MULTILINE)
    assert [command.split()[:2] for command in commands] == [["losses", "check"], ["losses", "show"], ["train", "dpo"]]
    try:
        assert main([*commands[0].split(), "--examples", "1"]) == 0
        assert main(commands[1].split()) == 0
        assert "written_today" in capsys.readouterr().out
    finally:
        unregister_loss("written_today")
        del sys.modules["written_today"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dpo", "is the id of a loss already"),
        ("my-loss", "such as 'my_loss'"),
        ("class", "such as 'my_class'"),
        ("json", "is the name of a Python module"),
    ],
)
def test_a_name_that_is_taken_or_none_is_refused_before_anything_is_written(
    name: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "loss", name]) == 2
    assert message in capsys.readouterr().err
    assert not list(here.iterdir())


def test_nothing_is_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = here / "sub" / "test_mine_of_today.py"
    kept.parent.mkdir()
    kept.write_text("mine")
    assert main(["new", "loss", "mine_of_today", "--out", "sub"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in kept.parent.iterdir()] == [(kept.name, "mine")]


def test_a_family_without_the_kind_is_refused_with_the_kinds_that_it_has(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "loss", "mine_of_today", "--family", "embedding", "--per", "token"]) == 2
    assert "only per batch" in capsys.readouterr().err


@pytest.mark.slow
def test_every_template_passes_its_own_test_and_the_linter(here: Path) -> None:
    for number, (family, per) in enumerate(TEMPLATES):
        assert main(["new", "loss", f"new_{number}", "--family", family, "--per", per]) == 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "true"}
    commands = [
        ["pytest", "-q", "-p", "no:cacheprovider", "--maxfail=3", "-o", "addopts=", "."],
        ["ruff", "check", "--isolated", "--select", "E,F,I,UP", "--line-length", "120", "."],
    ]
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=here, capture_output=True, text=True, env=environment, timeout=900
        )
        assert done.returncode == 0, done.stdout + done.stderr
