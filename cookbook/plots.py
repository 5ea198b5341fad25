"""Curves of runs, drawn from their metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..datums.errors import MissingExtraError
from .extras import require
from .runs import CURVE, METRICS, read_metrics

#: What is drawn, in this order, for as much of it as the runs recorded: key in metrics.jsonl, and label with unit.
PANELS = (
    ("nll", "training (nats a token)"),
    ("loss", "training loss"),
    ("held_out_nll", "held-out loss (nats a token)"),
    ("held_out_score", "held-out score (fraction right)"),
)


def plot_run(folder: str | Path, path: str | Path | None = None) -> Path:
    """Draw one run's curves into its folder, or into `path`; returns where."""
    folder = Path(folder)
    return plot_runs({folder.name: folder}, path or folder / CURVE)


def plot_runs(folders: Mapping[str, str | Path], path: str | Path) -> Path:
    """Draw the curves of several runs into one picture, a panel for each quantity, a colour for each run.

    folders: label to run folder. Raises MissingExtraError with the pip command when matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", "plot", "drawing curves")  # no pyplot: it keeps global state
    rows = {label: read_metrics(Path(folder) / METRICS) for label, folder in folders.items()}
    panels = _panels(rows)
    figure = figure_module.Figure(figsize=(5 * max(len(panels), 1), 3.6), layout="constrained")
    axes = figure.subplots(1, max(len(panels), 1), squeeze=False)[0]
    for ax, (key, label) in zip(axes, panels, strict=False):
        for name, run in rows.items():
            _draw(ax, run, key, name)
        ax.set(xlabel="optimizer steps", ylabel=label)
        ax.grid(alpha=0.3)
        if key == "held_out_score":
            ax.set_ylim(-0.03, 1.03)
        if len(rows) > 1:
            ax.legend()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _panels(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, str]]:
    """What the runs recorded. Different losses are not comparable: where all recorded `nll`, it stands for `loss`."""
    comparable = all(any("nll" in row for row in run) for run in rows.values())
    hidden = "loss" if comparable else "nll"
    recorded = {key for run in rows.values() for row in run for key in row}
    return [(key, label) for key, label in PANELS if key in recorded and key != hidden]


def try_plot(folders: Mapping[str, str | Path], path: str | Path) -> str:
    """`curve PATH`, or one line that says how to get one where matplotlib is not installed."""
    try:
        return f"curve   {plot_runs(folders, path)}"
    except MissingExtraError as error:
        return f"no curve: {error}"


def _draw(ax: Any, run: Sequence[Mapping[str, Any]], key: str, name: str) -> None:
    """The values, and, where there are many, their running mean on top."""
    points = [(row["step"], row[key]) for row in run if key in row]
    if not points:
        return
    steps, values = zip(*points, strict=True)
    if len(points) < 30:
        ax.plot(steps, values, marker="o", label=name)
        return
    width = max(len(points) // 20, 2)
    means = [
        sum(values[max(i - width, 0) : i + 1]) / len(values[max(i - width, 0) : i + 1]) for i in range(len(values))
    ]
    (line,) = ax.plot(steps, means, label=name)
    ax.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=0.8)
