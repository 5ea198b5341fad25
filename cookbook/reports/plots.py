"""Curves of runs as a picture, from their metrics.jsonl."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...datums import disk
from ...datums.errors import MissingExtraError, RunError
from ..diagnose.history import is_number
from ..extras import require
from ..run.names import CONFIG, METRICS
from ..run.runs import read_metrics, read_settings, writing_run
from .panels import Panel, Rows, default_panels, panels_of
from .scales import scales

#: Colours that colour-blind readers can tell apart, on white and on black.
COLOURS = ("#2a78d6", "#e07b1a", "#2f9e62", "#c2477f", "#7b5bc4", "#8a8f98", "#b59a1f", "#3aa6b9")
DASHES = ("-", "--", ":", "-.")
#: From this many values on a centred mean is drawn on top of a curve.
MANY = 30
#: matplotlib settings.
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "lossbook",
    "text.parse_math": False,  # names of runs and metrics may hold a $
}


def plot_runs(folders: Mapping[str, str | Path], path: str | Path, keys: Sequence[str] | None = None) -> Path:
    """Draw the curves of several runs into one picture: one panel per metric, one colour per run.

    folders   label to run folder
    path      .png, .svg or .pdf
    keys      metrics to draw, one panel each; by default the `default_panels` of the recorded metrics

    Raises MissingExtraError with the pip command if matplotlib is not installed, RunError if the file cannot be written.
    """
    figure_module = require("matplotlib.figure", "plot", "drawing curves")  # pyplot would keep global state
    matplotlib = require("matplotlib", "plot", "drawing curves")
    runs = {label: read_metrics(Path(folder) / METRICS) for label, folder in folders.items()}
    panels = default_panels(runs, losses_of(folders)) if keys is None else panels_of(keys)
    columns = min(max(len(panels), 1), 3)
    lines = -(-len(panels) // columns) or 1
    with matplotlib.rc_context(_STYLE):
        figure = figure_module.Figure(figsize=(4.4 * columns, 2.9 * lines), layout="constrained")
        axes = list(figure.subplots(lines, columns, squeeze=False).flat)
        for ax, panel in zip(axes, panels, strict=False):
            _draw_panel(ax, panel, runs)
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        path = Path(path)
        image = io.BytesIO()
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(image, format=path.suffix.removeprefix(".") or None, dpi=120, metadata=metadata)
    with writing_run(path):
        disk.make_folder(path.parent)
        disk.write_file(path, image.getvalue())
    return path


def losses_of(folders: Mapping[str, str | Path]) -> dict[str, Any]:
    """The loss and the loss settings of each run, if its folder has a config.json."""
    losses: dict[str, Any] = {}
    for label, folder in folders.items():
        settings = read_settings(Path(folder)) if (Path(folder) / CONFIG).exists() else {}
        losses[label] = (settings.get("loss"), settings.get("loss_config"))
    return losses


def try_plot(folders: Mapping[str, str | Path], path: str | Path) -> str:
    """Draw the curves and return `curve PATH`, or one line that says why not: no matplotlib, or no space."""
    try:
        return f"curve   {plot_runs(folders, path)}"
    except (MissingExtraError, RunError) as error:
        return f"no curve: {error}"


def centred_mean(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Means over a twentieth of the curve around each value, over less near the ends, so that the curve does not lag."""
    values = np.asarray(values, dtype=np.float64)
    widest, places = max(len(values) // 40, 1), np.arange(len(values))
    half = np.minimum(np.minimum(places, places[::-1]), widest)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[places + half + 1] - sums[places - half]) / (2 * half + 1)


def _draw_panel(ax: Any, panel: Panel, runs: Mapping[str, Rows]) -> None:
    """Several runs differ by colour and metrics by dash; the metrics of a single run differ by colour."""
    for i, (label, rows) in enumerate(runs.items()):
        for j, key in enumerate(panel.keys):
            name = key if len(runs) == 1 else label if len(panel.keys) == 1 else f"{label}: {key}"
            colour = COLOURS[(i if len(runs) > 1 else j) % len(COLOURS)]
            _draw(ax, rows, key, label=name, color=colour, linestyle=DASHES[j % len(DASHES)] if len(runs) > 1 else "-")
    ax.set(xlabel="optimizer steps", title=panel.title)
    drawn = [row[key] for rows in runs.values() for row in rows for key in panel.keys if is_number(row.get(key))]
    finite = np.array([value for value in drawn if math.isfinite(value)], dtype=np.float64)
    if len(finite) and scales(finite)[0].is_logarithmic:
        ax.set_yscale("log")
    if len(runs) > 1 or len(panel.keys) > 1:
        ax.legend()


def _draw(ax: Any, rows: Rows, key: str, **style: Any) -> None:
    """The values, with their centred mean on top if there are many."""
    points = [(row["step"], row[key]) for row in rows if is_number(row.get(key))]
    if not points:
        return
    steps, values = zip(*points, strict=True)
    if len(points) < MANY:
        ax.plot(steps, values, marker="o", markersize=3.5, linewidth=1.4, **style)
        return
    ax.plot(steps, values, alpha=0.25, linewidth=0.8, color=style["color"])
    ax.plot(steps, centred_mean(values), linewidth=1.6, **style)
