"""Curves in a terminal, drawn with braille characters of two by four dots."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence

from .curves import Curve

#: The widest and the only height of a panel, and the fewest characters in which two stand side by side.
WIDTH, HEIGHT, SIDE_BY_SIDE = 44, 9, 72
#: Bits of a braille character by (row, column) of its dots.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BLANK = 0x2800
#: Dots drawn and dots left out, repeated along each line: solid, dashed, dotted.
_DASHES = ((1, 0), (3, 3), (1, 3))
_MARKS = ("──", "- -", "· ·")


def draw(curve: Curve, columns: int = 112, *, width: int = WIDTH, height: int = HEIGHT) -> str:
    """Loss and gradient in lines of at most `columns` characters: side by side, or below each other where that is narrow."""
    panels = {
        curve.loss_title: [(line.x, line.loss) for line in curve.lines],
        curve.gradient_title: [(line.x, line.gradient) for line in curve.lines],
    }
    side_by_side = columns >= SIDE_BY_SIDE
    room = (columns - 2) // 2 if side_by_side else columns
    drawn = [_panel(lines, title, room, width, height) for title, lines in panels.items()]
    rows = [f"{left}  {right}" for left, right in zip(*drawn, strict=True)] if side_by_side else [*drawn[0], *drawn[1]]
    names = [f"{mark} {line.label}" for line, mark in zip(curve.lines, _MARKS, strict=False) if line.label]
    notes = (f"over the {curve.quantity}", ", ".join([*names, curve.fixed]))
    below = [textwrap.fill(note, columns, initial_indent="  ", subsequent_indent="  ") for note in notes]
    return "\n".join([*(row.rstrip() for row in rows), *below])


def _panel(
    lines: Sequence[tuple[Sequence[float], Sequence[float]]], title: str, room: int, width: int, height: int
) -> list[str]:
    """height + 2 lines of at most `room` characters: the title, the drawing and the ends of its y axis, the ends of the x axis."""
    left, right = _extent([x for xs, _ in lines for x in xs])
    low, high = _extent([y for _, ys in lines for y in ys])
    # A value that is 0 except for rounding, or close to 0 on the scale of this panel, is shown as 0.
    top, bottom = (f"{0 if abs(value) < (high - low) / 1000 else value:.3g}" for value in (high, low))
    label = max(len(top), len(bottom))
    width = min(width, room - label - 2)
    cells = [[_BLANK] * width for _ in range(height)]

    def place(x: float, y: float) -> tuple[int, int]:
        column = round((x - left) / (right - left) * (2 * width - 1))
        return column, round((high - y) / (high - low) * (4 * height - 1))

    def dot(column: int, row: int) -> None:
        cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]

    if low < 0 < high:
        for column in range(0, 2 * width, 6):  # where the value is 0
            dot(column, place(left, 0.0)[1])
    for (xs, ys), (drawn, left_out) in zip(lines, _DASHES, strict=False):
        path = _joined([place(x, y) for x, y in zip(xs, ys, strict=True)])
        for i, point in enumerate(path):
            if i % (drawn + left_out) < drawn:
                dot(*point)
    margins = [top, *[""] * (height - 2), bottom]
    body = [
        f"{margin:>{label}} ┤{''.join(' ' if cell == _BLANK else chr(cell) for cell in row)}"
        for margin, row in zip(margins, cells, strict=True)
    ]
    ends = f"{' ' * label}  {left:<{width // 2}.3g}{right:>{width - width // 2}.3g}"
    shown = title if len(title) <= width else title.rpartition(" (")[0]  # the unit is the last that there is room for
    return [f"{' ' * label}  {shown:<{width}.{width}}", *body, ends]


def _joined(points: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The dots of a line through points: one per step in the longer direction."""
    path = list(points[:1])
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        steps = max(abs(x1 - x0), abs(y1 - y0))
        path += [(x0 + round((x1 - x0) * i / steps), y0 + round((y1 - y0) * i / steps)) for i in range(1, steps + 1)]
    return path


def _extent(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
