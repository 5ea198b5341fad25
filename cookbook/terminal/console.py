"""The rich console that commands print to."""

from __future__ import annotations

import os
import sys
from typing import IO

from rich.console import Console

#: Characters per line where there is no terminal to ask, and the fewest that anything is laid out for.
PIPE_WIDTH, MIN_WIDTH = 80, 30


def console(file: IO[str] | None = None) -> Console:
    """A console on `file`, by default standard output, that prints text as it is: no markup, no highlighting.

    It is as wide as the terminal, and 80 in a pipe; COLUMNS overrides both. A pipe gets no colour, and NO_COLOR=1 turns
    it off.
    """
    stream = sys.stdout if file is None else file
    asked = os.environ.get("COLUMNS", "")
    width = max(int(asked), MIN_WIDTH) if asked.isdigit() else None if stream.isatty() else PIPE_WIDTH
    height = None if width is None else 25  # rich heeds a width under TERM=dumb only beside a height
    return Console(file=stream, width=width, height=height, markup=False, highlight=False, emoji=False)


def show(text: str) -> None:
    """Print text: wrapped between words on a terminal; in a pipe its lines stay as they are."""
    stdout = console()
    stdout.print(text, soft_wrap=not stdout.is_terminal)
