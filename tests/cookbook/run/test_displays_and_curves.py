"""What a person sees of a run, and the picture."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from lossbook.cookbook import dpo, embed, rl
from lossbook.cookbook.reports.plots import plot_runs, try_plot
from lossbook.cookbook.run.loggers import PLAIN_LINES, StepDisplay, StepLine, is_plain
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


METRICS = {"sft": ("loss", "grad_norm"), "dpo": dpo.SHOWN, "rl": rl.SHOWN, "embed": embed.SHOWN}


@pytest.mark.parametrize("recipe", METRICS)
@pytest.mark.parametrize("width", [60, 80, 140])
def test_every_recipe_shows_bar_step_time_left_and_the_metrics_that_fit(
    terminal: Console, recipe: str, width: int
) -> None:
    terminal.width = width
    with StepDisplay(1200, 36, console=terminal) as display:
        display.step(37, 12345, dict.fromkeys(METRICS[recipe], -0.0123456))
    texts = [f"{name} -0.01235" for name in METRICS[recipe]]
    frames = [Text.from_ansi(frame).plain.rstrip() for frame in re.split(r"[\r\n]", written(terminal))]
    frame = next(frame for frame in reversed(frames) if "/1200" in frame)
    match = re.search(r"training (━|╸|╺)[━╸╺]{8,} +37/1200  \d+\S* (s|min|h) left  (.*)$", frame)
    assert match is not None, frame
    assert cell_len(match[0]) <= width
    shown = match[3].split("  ")
    assert shown == [*texts, shown[-1]][: len(shown)]  # a first part of the metrics, then perhaps the speed
    assert shown[-1] in texts or shown[-1].endswith(" tokens/s")
    assert len(shown) >= {60: 1, 80: 1, 140: len(texts)}[width]


WORDS = st.text(alphabet="abc_", min_size=1, max_size=24)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 200), st.integers(0, 10**9), st.integers(1, 10**9), WORDS, st.lists(WORDS, max_size=6))
def test_a_progress_line_fits_any_width_and_drops_the_last_metrics_first(
    width: int, step: int, total: int, title: str, metrics: list[str]
) -> None:
    def rendered(width: int) -> str:
        console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
        console.print(line)
        return written(console)

    line = StepLine(title, min(step, total), total, "1:02 min left", tuple(metrics))
    text = rendered(width)
    assert text.count("\n") == 1
    assert cell_len(text.rstrip()) <= width
    _, bar, texts = line.layout(width)
    whole = [f"{line.step:>{len(str(total))}}/{total}", "1:02 min left", *metrics]
    assert texts == whole[: len(texts)] or texts == [str(line.step)]
    assert "  ".join(texts)[:width].rstrip() in text
    assert bar == 0 or 10 <= bar <= 24
    assert line.layout(400) == (title, 24, whole)


def test_notes_wrap_between_words_in_a_terminal_and_stay_one_line_in_a_pipe(terminal: Console) -> None:
    text = " ".join(["held_out_reverse_kl 0.1234"] * 6)
    terminal.width = 60
    pipe = Console(file=io.StringIO(), width=60)
    for console in (terminal, pipe):
        StepDisplay(3, console=console).note(text)
    assert all(len(line) <= 60 for line in written(terminal).splitlines())
    assert written(terminal).split() == text.split()
    assert written(pipe) == text + "\n"


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
