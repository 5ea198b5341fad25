"""The help of a command, laid out for any width."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text

from ..commands.table import Command
from ..settings.groups import GROUPS
from ..settings.written.needs import choices
from ..terminal import console
from .flags import NEEDED, OTHERS, Flag
from .overview import grid_of

#: Widest column of flags beside their texts, and the narrowest line that has both.
COLUMN, BESIDE = 26, 76
#: The heading of what every command takes.
ALL = "General"


def print_help(name: tuple[str, ...], command: Command, flags: Sequence[Flag], text: str) -> None:
    """Print a command's help: examples, what it does, and its flags by group."""
    screen = console()
    places = " ".join(_place(flag) for flag in flags if flag.placed)
    screen.print(Text(" ".join(filter(None, ["usage: lossbook", *name, places, "[FLAGS]"]))))
    for example in command.examples:
        for line in shell_lines(example, screen.width - 2).splitlines():
            screen.print(Text(f"  {line}", style="cyan"))  # no spaces after a backslash
    screen.print()
    screen.print(Text(text))
    screen.print()
    boxes = [*_boxes(command, flags)]
    lengths = [flag.cell_len for _, rows in boxes for flag, _ in rows if flag.cell_len <= COLUMN]
    for title, rows in boxes:
        screen.print(_box(title, rows, max(lengths) if screen.width >= BESIDE else 0))


def _place(flag: Flag) -> str:
    return flag.value if flag.default is NEEDED else f"[{flag.value}]"


def _boxes(command: Command, flags: Sequence[Flag]) -> Iterator[tuple[str, list[tuple[Text, Text]]]]:
    for title in ("", *GROUPS, OTHERS):
        rows = [_row(flag) for flag in flags if (flag.placed if not title else flag.group == title and not flag.placed)]
        if rows:
            yield title or "Arguments", rows
    general = [("-h, --help", "show this help"), ("--debug", "keep the traceback of an error")]
    if command.config is not None:
        general.insert(0, ("--config FILE", "read settings from TOML, JSON or YAML; flags override them"))
        general.insert(1, ("--no-FLAG", "switch off what is on by default or in the file"))
    if command.section == "Train":
        general.insert(1, ("--sweep NAME=VALUES ...", "a run for each combination: --sweep loss=dpo,simpo seed=0,1,2"))
        general.insert(2, ("--jobs N", "with --sweep: this many runs at once"))
    yield ALL, [(Text(flag, style="cyan"), Text(text)) for flag, text in general]


def _row(flag: Flag) -> tuple[Text, Text]:
    if flag.placed:
        return Text(flag.value, style="cyan"), Text(flag.help)
    names = ", ".join((flag.long, *flag.aliases))
    if flag.is_switch and flag.default is True:
        names = f"--[no-]{flag.long[2:]}"
    return Text.assemble((names, "cyan"), f" {flag.value}" if flag.value else ""), Text.assemble(*_explained(flag))


def _explained(flag: Flag) -> Iterable[Any]:
    """The flag's text with its choices and its default."""
    text = flag.help.rstrip(".")
    notes = []
    chosen = [str(one) for one in choices(flag.annotation)]
    if "|".join(chosen) not in flag.value and not all(re.search(rf"\b{re.escape(one)}\b", text) for one in chosen):
        notes.append(f"one of {', '.join(chosen)}")
    text, _, when_none = text.partition("; None: ") if flag.default is None else (text, "", "")
    default = when_none or _default(flag)
    if flag.default is NEEDED:
        notes.append("needed")
    elif default:
        notes.append(f"default: {default}")
    yield text
    if notes:
        yield (f" ({'; '.join(notes)})", "dim")


def _default(flag: Flag) -> str:
    value = flag.default
    if value is None or value is NEEDED or value is False or value == () or value == [] or value == {}:
        return ""
    if value is True:
        return "yes"
    if isinstance(value, dict):
        return " ".join(f"{key} {inner}" for key, inner in value.items())
    if isinstance(value, tuple | list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _box(title: str, rows: Sequence[tuple[Text, Text]], width: int) -> RenderableType:
    """The flags of a group. width: of the column of flags, beside which their texts stand; 0: these stand below."""
    parts: list[RenderableType] = []
    for flag, text in rows:
        if not width:
            parts += [flag, Padding(text, (0, 0, 0, 4))]
            continue
        if flag.cell_len > width:
            parts.append(flag)
        grid = grid_of(width)
        grid.add_row(flag if flag.cell_len <= width else Text(), text)
        parts.append(grid)
    heading = Text(title, style="bold")
    return Panel(Group(*parts), title=heading, title_align="left", box=box.ROUNDED, border_style="dim")


def shell_lines(line: str, width: int) -> str:
    """A command line that fits: broken before flags, with a backslash, so that it can still be pasted."""
    lines = [""]
    for part in re.split(r" (?=--)", line):
        if lines[-1] and len(lines[-1]) + len(part) + 3 > width:
            lines[-1] += " \\"
            lines.append(f"    {part}")
        else:
            lines[-1] += f" {part}" if lines[-1] else part
    return "\n".join(lines)
