"""What a person sees of a run, and the picture."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from lossbook.cookbook.reports.plots import plot_runs, try_plot
from lossbook.cookbook.run.loggers import PLAIN_LINES, StepDisplay, is_plain
from lossbook.cookbook.run.runs import open_run
from lossbook.datums.errors import MissingExtraError


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    """A terminal of a person, into a string."""
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return Console(file=io.StringIO(), force_terminal=True, width=100)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def run_steps(console: Console, total: int, start: int = 0) -> str:
    with StepDisplay(total, start, title="ppo", console=console) as display:
        for step in range(start + 1, total + 1):
            display.step(step, 100, {"loss": 0.5})
        display.note("held_out [score] 0.5")
    return written(console)


def test_a_terminal_gets_a_bar(terminal: Console) -> None:
    assert not is_plain(terminal)
    assert "\x1b[" in run_steps(terminal, 3)


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("NO_COLOR", "1"), ("TERM", "dumb")])
def test_ci_and_no_color_and_dumb_terminals_get_plain_lines(
    terminal: Console, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert is_plain(terminal)


def test_a_pipe_gets_a_few_plain_lines_and_the_last_step_among_them() -> None:
    text = run_steps(Console(file=io.StringIO(), width=40), 1003)
    lines = text.splitlines()
    assert "\x1b" not in text
    assert len(lines) <= PLAIN_LINES + 4
    assert lines[0].startswith("ppo 1/1003  loss 0.5 ")
    assert "tokens/s" in lines[0]
    assert lines[-2].startswith("ppo 1003/1003 ")
    assert lines[-1] == "held_out [score] 0.5"


def test_a_resumed_run_counts_from_where_it_was() -> None:
    assert run_steps(Console(file=io.StringIO()), 40, start=38).startswith("ppo 39/40")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    run = open_run(tmp_path / "run", {})
    run.log(0, {"held_out_score": 0.0})
    for step in range(1, 50):
        run.log(step, {"loss": 1 / step, "nll": 1 / step})
    run.log(49, {"held_out_score": 0.9})
    return run.path


def test_curves_are_a_png_in_the_runs_folder(run_folder: Path) -> None:
    path = plot_runs({"run": run_folder}, run_folder / "curve.png")
    assert path == run_folder / "curve.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_runs_with_nothing_recorded_still_make_a_picture(tmp_path: Path) -> None:
    open_run(tmp_path / "a", {})
    assert plot_runs({"a": tmp_path / "a"}, tmp_path / "pictures" / "both.png").exists()


def test_without_matplotlib_there_is_one_line_with_the_command(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"drawing curves needs matplotlib: pip install 'lossbook\[plot\]'"):
        plot_runs({"run": run_folder}, run_folder / "curve.png")
    (line,) = try_plot({"run": run_folder}, run_folder / "curve.png").splitlines()
    assert "pip install 'lossbook[plot]'" in line
    assert not (run_folder / "curve.png").exists()
