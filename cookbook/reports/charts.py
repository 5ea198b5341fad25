"""Curves as inline SVG, readable without a script; `style.SCRIPT` adds the values under the pointer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from ..diagnose.history import History
from .panels import Panel, Rows
from .plots import COLOURS, DASHES, MANY, running_mean

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
    """A <figure>, and the data that the script shows under the pointer, as JSON values."""
    curves = _curves(panel, runs)
    if not curves:
        return "", {}
    x = (min(int(curve.steps.min()) for curve in curves), max(int(curve.steps.max()) for curve in curves))
    y = _range(np.concatenate([curve.values for curve in curves]))
    legend = "".join(_legend(curve) for curve in curves) if len(curves) > 1 else ""
    body = [*_axes(x, y), *(_drawn(curve, x, y) for curve in curves)]
    label = escape(f"{panel.title}: {', '.join(curve.label for curve in curves)}", quote=True)
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(body)}'
        f'<line class="cursor" y1="{ABOVE}" y2="{HEIGHT - BELOW}" hidden></line></svg>'
    )
    html = (
        f'<figure class="chart"><figcaption>{escape(panel.title)}{legend}</figcaption>{svg}<output></output></figure>'
    )
    return html, {
        "x": x,
        "left": LEFT / WIDTH,
        "right": 1 - RIGHT / WIDTH,
        "curves": [_data(curve) for curve in curves],
    }


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) from low to high."""
    rough = (high - low) / count
    if not math.isfinite(rough) or rough <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


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


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(steps) <= MOST_POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), MOST_POINTS)
    return steps[[part[-1] for part in parts]], np.array([values[part].mean() for part in parts])


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if low == high == 0:  # probably a fraction: show 0 to 1
        return -0.04, 1.0
    room = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _axes(x: tuple[int, int], y: tuple[float, float]) -> list[str]:
    parts: list[str] = []
    for tick in ticks(*y):
        at = _y(tick, y)
        shown = "0" if abs(tick) < 1e-9 * (y[1] - y[0]) else f"{tick:.4g}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"></line>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{shown}</text>')
    for tick in ticks(*x):
        if tick == int(tick):
            parts.append(f'<text x="{_x(tick, x):.1f}" y="{HEIGHT - 9}" text-anchor="middle">{int(tick)}</text>')
    return parts


def _drawn(curve: Curve, x: tuple[int, int], y: tuple[float, float]) -> str:
    """The values, with a running mean on top if there are many."""
    classes = f"c{curve.colour} d{curve.dash}"
    if len(curve.steps) < MANY:
        dots = "".join(
            f'<circle class="c{curve.colour}" cx="{_x(s, x):.1f}" cy="{_y(v, y):.1f}" r="2.6"></circle>'
            for s, v in zip(curve.steps, curve.values, strict=True)
        )
        return _path(curve.steps, curve.values, x, y, classes) + dots
    means = running_mean(curve.values.tolist())
    return _path(curve.steps, curve.values, x, y, f"{classes} raw") + _path(curve.steps, means, x, y, classes)


def _path(
    steps: np.ndarray, values: Sequence[float] | np.ndarray, x: tuple[int, int], y: tuple[float, float], classes: str
) -> str:
    points = " ".join(f"{_x(s, x):.1f},{_y(v, y):.1f}" for s, v in zip(steps, values, strict=True))
    return f'<polyline class="{classes}" points="{points}"></polyline>'


def _x(step: float, x: tuple[int, int]) -> float:
    return LEFT + (step - x[0]) / max(x[1] - x[0], 1) * (WIDTH - LEFT - RIGHT)


def _y(value: float, y: tuple[float, float]) -> float:
    return ABOVE + (y[1] - value) / (y[1] - y[0]) * (HEIGHT - ABOVE - BELOW)


def _legend(curve: Curve) -> str:
    return f'<span class="key c{curve.colour} d{curve.dash}">{escape(curve.label)}</span>'


def _data(curve: Curve) -> dict[str, Any]:
    values = [float(f"{value:.5g}") for value in curve.values]
    return {"label": curve.label, "colour": curve.colour, "steps": curve.steps.tolist(), "values": values}
