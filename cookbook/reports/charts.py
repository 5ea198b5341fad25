"""Curves as inline SVG, readable without a script; `style.SCRIPT` adds the values under the pointer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..diagnose.history import History
from ..pages.render import render
from .panels import Panel, Rows
from .plots import COLOURS, DASHES, MANY, centred_mean
from .scales import Scale, scales, ticks

#: Size in SVG units, and the margins around the axes: left, right, above, below.
WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, ABOVE, BELOW = 52, 10, 8, 26
#: A longer curve is drawn as the means of this many segments.
MOST_POINTS = 400


@dataclass(frozen=True)
class Curve:
    """One curve of a chart. colour, dash: indices into `COLOURS` and `DASHES`; CSS classes c0, c1, ... and d0, d1, ..."""

    label: str
    steps: np.ndarray
    values: np.ndarray
    colour: int
    dash: int = 0


def chart_html(panel: Panel, runs: Mapping[str, Rows]) -> tuple[str, dict[str, Any]]:
    """A <figure>, and the data that the script shows under the pointer, as JSON values; ("", {}) where there is no curve."""
    curves = _curves(panel, runs)
    if not curves:
        return "", {}
    x = (min(int(curve.steps.min()) for curve in curves), max(int(curve.steps.max()) for curve in curves))
    drawings = scales(np.concatenate([curve.values for curve in curves]))
    figure = render(
        "chart",
        **{"title": panel.title, "label": f"{panel.title}: {', '.join(curve.label for curve in curves)}"},
        **{"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT},
        **{"top": ABOVE, "bottom": HEIGHT - BELOW},
        keys=_keys(curves, len(runs)),
        steps=[(f"{_x(tick, x):.1f}", f"{int(tick):,}") for tick in ticks(*x) if tick == int(tick)],
        drawings=[(y, _levels(y), [(curve, *_drawn(curve, x, y)) for curve in curves]) for y in drawings],
    )
    shares = {"left": LEFT / WIDTH, "right": 1 - RIGHT / WIDTH}
    return figure, {"x": x, **shares, "curves": [_data(curve) for curve in curves]}


def _curves(panel: Panel, runs: Mapping[str, Rows]) -> list[Curve]:
    """Several runs differ by colour and metrics by dash; the metrics of a single run differ by colour."""
    curves: list[Curve] = []
    for i, (label, rows) in enumerate(runs.items()):
        history = History(rows)
        for j, key in enumerate(panel.keys):
            series = history.series(key)
            if not len(series):
                continue
            name = key if len(runs) == 1 else label if len(panel.keys) == 1 else f"{label}: {key}"
            colour, dash = (j, 0) if len(runs) == 1 else (i, j)
            points = _thinned(series.steps, series.values)
            curves.append(Curve(name, *points, colour % len(COLOURS), dash % len(DASHES)))
    return curves


def _keys(curves: Sequence[Curve], runs: int) -> list[tuple[str, str]]:
    """The legend, as text and classes: the metrics of a single run by colour, those of several by dash; [] for one metric.

    The page names the colours of several runs once, above all charts.
    """
    if runs == 1:
        return [(curve.label, f"c{curve.colour} d{curve.dash}") for curve in curves] if len(curves) > 1 else []
    metrics = {curve.dash: curve.label.rpartition(": ")[2] for curve in curves}
    return [(metric, f"d{dash}") for dash, metric in metrics.items()] if len(metrics) > 1 else []


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(steps) <= MOST_POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), MOST_POINTS)
    return steps[[part[-1] for part in parts]], np.array([values[part].mean() for part in parts])


def _levels(y: Scale) -> list[tuple[str, str, str]]:
    """The grid's lines: where each lies, where its number stands, and the number."""
    return [(f"{(at := _y(tick, y)):.1f}", f"{at + 3.5:.1f}", text) for tick, text in y.ticks()]


def _drawn(curve: Curve, x: tuple[int, int], y: Scale) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The lines, each with its further class, and the dots: the values, with their centred mean on top if there are many."""
    points = [(f"{_x(s, x):.1f}", f"{_y(v, y):.1f}") for s, v in zip(curve.steps, curve.values, strict=True)]
    if len(points) < MANY:
        return [("", _path(points))], points
    means = centred_mean(curve.values)
    smooth = [(at, f"{_y(mean, y):.1f}") for (at, _), mean in zip(points, means, strict=True)]
    return [(" raw", _path(points)), ("", _path(smooth))], []


def _path(points: Sequence[tuple[str, str]]) -> str:
    return " ".join(",".join(point) for point in points)


def _x(step: float, x: tuple[int, int]) -> float:
    return LEFT + (step - x[0]) / max(x[1] - x[0], 1) * (WIDTH - LEFT - RIGHT)


def _y(value: float, y: Scale) -> float:
    return ABOVE + (1 - y.share(value)) * (HEIGHT - ABOVE - BELOW)


def _data(curve: Curve) -> dict[str, Any]:
    values = [float(f"{value:.5g}") for value in curve.values]
    return {"label": curve.label, "colour": curve.colour, "steps": curve.steps.tolist(), "values": values}
