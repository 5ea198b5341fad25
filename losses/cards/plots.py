"""Curves as SVG pictures that follow the reader's light or dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from ...datums.extras import require
from .curves import Curve, Line

#: Colours that show on white and on black; the dashes differ for readers without colour.
LINES = (("#2a78d6", "-"), ("#e07b1a", "--"), ("#2f9e62", ":"))
#: Stands for the colour of text, axes and grid, which the picture takes from its reader's mode.
_INK = "#010203"
_FONTS = "system-ui, 'DejaVu Sans', sans-serif"
_CSS = ".loss-plot{color:#24292f}@media (prefers-color-scheme:dark){.loss-plot{color:#d5d9de}}"
#: matplotlib settings. Text is kept as text: it is smaller, searchable, and independent of the fonts on this machine.
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lossbook",
    "font.family": "DejaVu Sans",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    "grid.color": _INK,
}


def curve_svg(curve: Curve) -> str:
    """The loss on the left and its gradient on the right. The same bytes every time.

    Raises MissingExtraError with the pip command if matplotlib is not installed.
    """
    matplotlib = require("matplotlib", "plot", "drawing curves")
    with matplotlib.rc_context(_STYLE):
        drawn = io.StringIO()
        curve_figure(curve).savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", drawn.getvalue(), flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", lambda tag: _shortened(tag[0]), text)  # not the numbers that are read
    text = (
        text.replace(_INK, "currentColor")
        .replace("'DejaVu Sans'", _FONTS)
        .replace("<svg ", '<svg class="loss-plot" ', 1)
    )
    text = text.replace('<style type="text/css">', f'<style type="text/css">{_CSS}', 1)
    return "\n".join(line.strip() for line in text.splitlines() if line.strip()) + "\n"


def curve_figure(curve: Curve) -> Any:
    """The matplotlib figure of a curve."""
    figure = require("matplotlib.figure", "plot", "drawing curves").Figure(figsize=(7.6, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, [(line, line.loss) for line in curve.lines], curve.loss_title)
    _draw(right, [(line, line.gradient) for line in curve.lines], curve.gradient_title)
    if any(line.label for line in curve.lines):
        left.legend(fontsize=8, frameon=False)
    figure.supxlabel(f"{curve.quantity}\n{curve.fixed}", fontsize=8.5)
    return figure


def _draw(ax: Any, lines: Sequence[tuple[Line, Sequence[float]]], title: str) -> None:
    for (line, values), (colour, dashes) in zip(lines, LINES, strict=False):
        for i, (xs, ys) in enumerate(line.pieces(values)):
            label = line.label if line.label and not i else None
            ax.plot(xs, ys, dashes, color=colour, linewidth=1.8, label=label)
    every = [value for _, values in lines for value in values]
    if max(every) - min(every) < 1e-9:  # a constant, whose axis would otherwise show rounding errors
        ax.set_ylim(min(every) - 0.5, max(every) + 0.5)
    if ax.get_ylim()[0] < 0 < ax.get_ylim()[1]:
        ax.axhline(0, color=_INK, alpha=0.5, linewidth=0.7, zorder=0)
    ax.set_title(title, fontsize=9.5, loc="left")
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.14, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def _shortened(tag: str) -> str:
    """Two digits after the point: hundredths of 1/72 inch."""
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", tag)
