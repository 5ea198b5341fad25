"""Cards, curves and comparisons of losses in a terminal, at its width."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from ...losses import UNPUBLISHED, Comparison, LossCard, Preset, get_loss
from ...losses.cards.braille import draw
from ...losses.cards.compare import NUMBERS, REDUCED
from ...losses.cards.curves import Curve
from ..terminal import Column, console, plain_text, table

#: Widest text that is easy to read; narrower than this, a card joins shapes and units to what tensors mean.
READABLE, NARROW = 120, 100


def print_losses(cards: Sequence[LossCard], presets: int) -> None:
    """A line or more for each loss, by family: what it reads, and where there is room its formula."""
    out = console()
    _print_text(out, f"{len(cards)} losses, {presets} presets (--presets); `lossbook losses show ID` shows one")
    out.print()
    rows: list[tuple[str, ...]] = []
    for family in sorted({card.family for card in cards}):
        members = [card for card in cards if card.family == family]
        rows.append((f"{family} ({len(members)})",))
        rows += [("\n  also ".join((c.name, *c.aliases)), c.per, c.reads, c.formula, c.reduction) for c in members]
    reads, formula = Column("reads [optional]", text=True), Column("formula", text=True, least=48)
    out.print(table(["id", "per", reads, formula, "reduction"], rows))
    out.print(f"\nnot offered ({len(UNPUBLISHED)})", style="bold")
    out.print(table(["id", Column("why", text=True)], list(UNPUBLISHED.items()), heads=False))


def print_presets(presets: Sequence[Preset]) -> None:
    """Each preset, by system, with the loss and its settings: beside it, or below it where the terminal is narrow."""
    out = console()
    _print_text(
        out, f"{len(presets)} presets; `lossbook losses show NAME` gives the source of one and what it leaves out"
    )
    for system in dict.fromkeys(preset.name.partition(":")[0] for preset in presets):
        members = [(one.name, str(get_loss(one.name))) for one in presets if one.name.startswith(f"{system}:")]
        out.print(f"\n{system} ({len(members)})", style="bold")
        if out.width >= NARROW:
            names = max(len(preset.name) for preset in presets)
            rows = [(f"{name:<{names}}", settings) for name, settings in members]
            out.print(table(["", Column(text=True)], rows, heads=False))
            continue
        for name, settings in members:
            out.print(name)
            _print_text(out, settings, "    ")


def print_cards(described: Sequence[tuple[LossCard, Curve | None]], preset: Preset | None) -> None:
    """The card and the curve of a loss, or of each part of a mixture."""
    out = console()
    if preset is not None:
        for line in str(preset).splitlines():
            _print_text(out, line)
        out.print()
    for number, (card, curve) in enumerate(described):
        out.print("\n" * (number > 0) + card.title, style="bold")
        _print_text(out, card.shown_formula, "  ")
        for paragraph in card.paragraphs:
            out.print()
            _print_text(out, paragraph)
        _print_sections(out, card.sections())
        if curve is not None:
            out.print(f"\n{draw(curve, min(out.width, READABLE))}", soft_wrap=True)


def print_comparison(comparison: Comparison) -> None:
    """How two losses differ; a table of numbers that is too wide goes on below itself."""
    out = console()
    out.print("\n".join(comparison.names))
    _print_sections(out, comparison.sections())
    if comparison.note:
        out.print()
        _print_text(out, comparison.note)
    if comparison.rows:
        out.print()
        _print_text(out, NUMBERS, style="bold")
        for part in _parts(*comparison.numbers(), room=out.width - 2):
            out.print(part)
        _print_sections(out, [(REDUCED, comparison.sums())])


def _print_sections(out: Console, sections: Sequence[tuple[str, Sequence[Sequence[str]]]]) -> None:
    for title, rows in sections:
        out.print(f"\n{title}", style="bold")
        if rows and out.width < NARROW and len(rows[0]) > 3:
            rows = [(row[0], f"{' '.join(row[1:-1]).strip()}: {row[-1]}") for row in rows]
        if rows:
            columns = [*[Column() for _ in rows[0][1:]], Column(text=True)]
            out.print(table(columns, rows, heads=False, indent=2))


def _print_text(out: Console, text: str, indent: str = "", style: str = "") -> None:
    """Text between the margins; a block with indented lines, such as a formula of several lines, as it is."""
    if any(line.startswith("  ") for line in text.splitlines()):
        out.print(plain_text(text), soft_wrap=True)
        return
    width = min(out.width, READABLE)
    words = plain_text(" ".join(text.split()))
    filled = textwrap.fill(words, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    out.print(Text(filled, style=style), soft_wrap=True)


def _parts(heads: Sequence[str], rows: Sequence[Sequence[str]], *, room: int) -> Iterator[object]:
    """The table in parts that fit `room`; each begins with the columns that say which position a row is about."""
    keys = [i for i, head in enumerate(heads) if head in ("datum", "token")]
    rest = [i for i in range(len(heads)) if i not in keys]
    widths = [max(len(row[i]) for row in (heads, *rows)) + 2 for i in range(len(heads))]
    while rest:
        shown = list(keys)
        while rest and (len(shown) == len(keys) or sum(widths[i] for i in [*shown, rest[0]]) - 2 <= room):
            shown.append(rest.pop(0))
        columns = [Column(heads[i], right=True) for i in shown]
        yield table(columns, [[row[i] for i in shown] for row in rows], indent=2)
        if rest:
            yield ""
