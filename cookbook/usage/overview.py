"""The help of the program: its commands by section, laid out for any width."""

from __future__ import annotations

from typing import get_args

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..commands.table import COMMANDS, Section
from ..terminal import console


def print_overview(below: tuple[str, ...] = ()) -> None:
    """Print the commands that begin with these words, by section."""
    names = [name for name in COMMANDS if name[: len(below)] == below]
    own = " ".join(("lossbook", *below))
    screen = console()
    screen.print(Text(f"usage: {own} COMMAND [FLAGS]"))
    width = max(len(" ".join(name)) for name in names)
    for section in get_args(Section):
        rows = [name for name in names if COMMANDS[name].section == section]
        if not rows:
            continue
        screen.print()
        screen.print(Text(section, style="bold"))
        grid = grid_of(width)
        for name in rows:
            grid.add_row(Text(" ".join(name), style="cyan"), Text(COMMANDS[name].summary))
        screen.print(Padding(grid, (0, 0, 0, 2)))
    screen.print()
    last = [f"`{own} COMMAND --help`: a command's flags and examples."]
    if not below:
        last.append("`lossbook --version`; `lossbook --completion bash`, or zsh: completion for your shell.")
    for line in last:
        screen.print(Text(line))


def grid_of(width: int) -> Table:
    """Two columns, the first of this width."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=width)
    grid.add_column()
    return grid
