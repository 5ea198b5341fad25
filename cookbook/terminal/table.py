"""Tables that fit the terminal: text wraps between words, and what does not fit is left out by whole columns."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.table import Table as RichTable
from rich.text import Text

from .console import MIN_WIDTH

#: Spaces between columns.
GAP = 2


@dataclass(frozen=True)
class Column:
    """A column of a table.

    head   its title
    text   its cells are sentences or lists: they wrap between words, and share the width that the other columns leave
    least  how narrow a column of text may become before another one is left out
    right  its cells are aligned to the right, as numbers are
    style  of its cells, as rich writes it: "bold", "dim", "green"
    """

    head: str = ""
    text: bool = False
    least: int = 24
    right: bool = False
    style: str = ""


@dataclass(frozen=True)
class Table:
    """A table that a rich console lays out for its own width. `table` makes it; `print` of it lays it out for a pipe."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    heads: bool
    indent: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment | Text]:
        width = options.max_width - self.indent
        widths = self._widths(width)
        margin = Segment(" " * self.indent)
        blocks: list[RichTable | Text] = [self._block(widths, (), heads=True)] if self.heads else []
        for is_heading, rows in itertools.groupby(self.rows, self._is_heading):
            if not is_heading:
                blocks.append(self._block(widths, rows))
                continue
            blocks += [Text() for _ in blocks[:1]]  # a blank line above a heading, but not above all
            blocks += [Text(title, style="bold") for (title,) in rows]
        left_out = [column.head for column in self.columns[len(widths) :] if column.head]
        if left_out:
            note = f"No room for {', '.join(left_out)}: widen the terminal, or set COLUMNS."
            blocks.append(Text(note, style="dim"))
        for block in blocks:
            for line in console.render_lines(block, options.update(width=width), pad=False):
                yield from (margin, *_without_trailing_space(line), Segment.line())

    def _is_heading(self, row: Sequence[str]) -> bool:
        return len(row) == 1 and len(self.columns) > 1

    def _block(self, widths: Sequence[int], rows: Iterable[Sequence[str]], *, heads: bool = False) -> RichTable:
        """Rows, or the heads alone, in the columns that there is room for, as rich's table."""
        block = RichTable(box=None, show_header=heads, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
        for column, width in zip(self.columns, widths, strict=False):
            justify: Literal["left", "right"] = "right" if column.right else "left"
            block.add_column(Text(column.head), justify=justify, width=width, style=column.style, overflow="fold")
        for row in rows:
            block.add_row(*(Text(cell) for cell in row[: len(widths)]))
        return block

    def _widths(self, room: int) -> list[int]:
        """The width of each column that is shown: the last ones are left out until the others fit, the first never."""
        natural = [max(map(_longest_line, cells)) for cells in self._cells()]
        least = [
            min(whole, max(column.least, *map(_longest_word, cells))) if column.text else whole
            for column, whole, cells in zip(self.columns, natural, self._cells(), strict=True)
        ]
        count = len(self.columns)
        if not self.heads:  # nothing would say what is missing, so the last column takes what there is
            least[-1] = min(least[-1], max(room - sum(least[:-1]) - GAP * (count - 1), MIN_WIDTH // 3))
        while self.heads and count > 1 and sum(least[:count]) + GAP * (count - 1) > room:
            count -= 1
        widths = [min(width, room) for width in least[:count]]
        slack = room - sum(widths) - GAP * (count - 1)
        while slack > 0 and (narrow := [i for i in range(count) if widths[i] < natural[i]]):
            # evenly, so that no text takes all of it; the first of them takes what cannot be divided
            for i in narrow:
                more = min(max(slack // len(narrow), 1), natural[i] - widths[i], slack)
                widths[i], slack = widths[i] + more, slack - more
        return widths

    def _cells(self) -> list[list[str]]:
        """The cells of each column, its head included."""
        whole = [row for row in self.rows if not self._is_heading(row)]
        return [
            [column.head if self.heads else "", *(row[i] for row in whole)] for i, column in enumerate(self.columns)
        ]


def table(
    columns: Sequence[Column | str], rows: Sequence[Sequence[object]], *, heads: bool = True, indent: int = 0
) -> Table:
    """A table of `rows`, for `console().print`. Name the columns in order of importance.

    columns  a str is the head of a column whose cells are never wrapped
    rows     a cell per column, shown by `str`; a row of one cell is a heading above those that follow
    heads    whether to print the columns' heads
    indent   spaces before each line

    Columns of text wrap and share the width that is left. Where even that is too wide, the last columns are left out, and a
    line below names them; without heads all columns stay, and long words of the last one break. Control characters are shown by their codes.
    """
    own = tuple(Column(one) if isinstance(one, str) else one for one in columns)
    cells = tuple(tuple(plain_text(str(cell)) for cell in row) for row in rows)
    for row in cells:
        if len(row) not in (1, len(own)):
            raise ValueError(f"a row has {len(row)} cells, but there are {len(own)} columns: {row}")
    return Table(own, cells, heads, indent)


def plain_text(text: str) -> str:
    """The text with control and formatting characters by their codes: data can neither hide text nor command the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


def _longest_line(cell: str) -> int:
    return max((Text(line).cell_len for line in cell.split("\n")), default=0)


def _longest_word(cell: str) -> int:
    return max((Text(word).cell_len for word in cell.split()), default=0)


def _without_trailing_space(line: list[Segment]) -> list[Segment]:
    """The segments of a line without the spaces that fill its last column up."""
    kept = list(line)
    while kept and not kept[-1].text.strip():
        kept.pop()
    if kept:
        kept[-1] = Segment(kept[-1].text.rstrip(), kept[-1].style, kept[-1].control)
    return kept
