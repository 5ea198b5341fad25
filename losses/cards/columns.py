"""Text in columns, for cards and comparisons."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 120


def block(title: str, rows: Sequence[Sequence[str]]) -> str:
    """Rows under a title, in columns; the last column wraps."""
    if not rows:
        return title
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        start = "  " + "".join(f"{cell:<{width}}  " for cell, width in zip(row, widths, strict=False))
        lines.append(wrapped(row[-1], start, " " * len(start)) if row[-1] else start.rstrip())
    return "\n".join([title, *lines])


def wrapped(text: str, start: str, indent: str | None = None) -> str:
    """Text in lines of WIDTH; a block with indented lines, such as a formula, is not changed."""
    if any(line.startswith("  ") for line in text.splitlines()):
        return text
    return textwrap.fill(
        " ".join(text.split()),
        WIDTH,
        initial_indent=start,
        subsequent_indent=start if indent is None else indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Right-aligned columns under their heads."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    lines = ("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in (heads, *rows))
    return "\n".join(f"  {line}".rstrip() for line in lines)
