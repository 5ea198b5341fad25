"""The progress display of a run; the record itself is metrics.jsonl."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from rich.cells import cell_len

from ..redaction import redacted
from ..terminal import console as terminal_console
from ..terminal import plain_text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

#: About how many progress lines a run prints where there is no bar.
PLAIN_LINES = 20
#: Cells of a bar, at least and at most, and what stands between two texts.
MIN_BAR, MAX_BAR, GAP = 10, 24, "  "


class StepDisplay:
    """A progress bar in a terminal; plain lines in a pipe, in CI and under NO_COLOR. Use it in a `with` block.

    total: the number of steps. start: the step that a resumed run continues from.
    """

    def __init__(self, total: int, start: int = 0, *, title: str = "training", console: Console | None = None) -> None:
        self.total = total
        self.title = title
        self.console = console or terminal_console(sys.stderr)
        self.plain = is_plain(self.console)
        self.tokens_per_second = 0.0
        self._start = self._done = start
        self._tokens = 0
        self._busy = 0.0
        self._resumed_at = 0.0
        self._live: Live | None = None

    def __enter__(self) -> StepDisplay:
        self._resumed_at = time.monotonic()
        if not self.plain:
            from rich.live import Live

            self._live = Live(StepLine(self.title, self._start, self.total), console=self.console)
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, step: int, tokens: int, metrics: Mapping[str, float]) -> None:
        """Report that a step over `tokens` tokens is done, and show its `metrics`."""
        self._busy += time.monotonic() - self._resumed_at
        self._resumed_at = time.monotonic()
        self._done, self._tokens = step, self._tokens + tokens
        self.tokens_per_second = self._tokens / max(self._busy, 1e-9)
        left = f"{_duration((self.total - step) * self._busy / max(step - self._start, 1))} left"
        shown = [plain_text(f"{name} {value:.4g}") for name, value in metrics.items()]
        speed = f"{self.tokens_per_second:,.0f} tokens/s"
        if self._live is not None:
            self._live.update(StepLine(self.title, step, self.total, left, (*shown, speed)))
        elif step in (self._start + 1, self.total) or step % max(self.total // PLAIN_LINES, 1) == 0:
            self.note("  ".join([f"{self.title} {step}/{self.total}", *shown, speed, left]))

    def note(self, text: str) -> None:
        """Print a line; the time since the last step is not counted as training."""
        # a terminal wraps between words; in a pipe a line stays one
        self.console.print(redacted(text), markup=False, highlight=False, soft_wrap=not self.console.is_terminal)
        self._resumed_at = time.monotonic()

    def rest(self) -> None:
        """Leave the time since the last step, such as an evaluation's, out of the speed."""
        self._resumed_at = time.monotonic()


@dataclass(frozen=True)
class StepLine:
    """Title, bar, step n/N, time left and metrics in one line, as far as the terminal is wide; the last metrics go first.

    left: the time left, in words; "" before the first step. shown: metrics in order of importance, each a text.
    """

    title: str
    step: int
    total: int
    left: str = ""
    shown: tuple[str, ...] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        title, bar, texts = self.layout(options.max_width)
        row = [*([Text(title)] if title else []), *([ProgressBar(self.total, self.step, width=bar)] if bar else [])]
        grid = Table.grid(padding=(0, 1))
        grid.add_row(*row, Text(GAP.join(texts), no_wrap=True, overflow="crop"))
        yield grid

    def layout(self, width: int) -> tuple[str, int, list[str]]:
        """The title ("" where it does not fit), the width of the bar (0 for none) and the texts after it, for a width in cells.

        The step comes first, then the time left, the first metric, the bar, the title, and the other metrics.
        """
        count = f"{self.step:>{len(str(self.total))}}/{self.total}"
        count = count if len(count) <= width else str(self.step)
        texts, room = [count], width - len(count)
        rest = [text for text in (self.left, *self.shown) if text]

        def add(most: int) -> None:
            nonlocal room
            while rest and len(texts) < most and len(GAP) + cell_len(rest[0]) <= room:
                room -= len(GAP) + cell_len(rest[0])
                texts.append(rest.pop(0))

        add(3)
        bar = MIN_BAR if room > MIN_BAR else 0
        room -= bar + bool(bar)
        title = self.title if bar and room > cell_len(self.title) else ""
        room -= cell_len(title) + bool(title)
        add(len(texts) + len(rest))
        return title, min(bar + room, MAX_BAR) if bar else 0, texts


def quiet_libraries() -> None:
    """Switch off what bitsandbytes says of kernels that it lacks; where output is plain, other libraries' progress bars too.

    For the command line only, before transformers is imported: it changes this process's environment.
    """
    from rich.console import Console

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if is_plain(Console(file=sys.stderr)):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def is_plain(console: Console) -> bool:
    """Whether to print plain lines: not a terminal, or CI, NO_COLOR or TERM=dumb is set."""
    asked = any(os.environ.get(name) for name in ("CI", "NO_COLOR"))
    return asked or not console.is_terminal or console.is_dumb_terminal


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02} h"
    return f"{minutes}:{rest:02} min" if minutes else f"{rest} s"
