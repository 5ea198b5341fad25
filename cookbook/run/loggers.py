"""The progress display of a run; the record itself is metrics.jsonl."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from ..redaction import redacted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

#: About how many progress lines a run prints where there is no bar.
PLAIN_LINES = 20


class StepDisplay:
    """A progress bar in a terminal; plain lines in a pipe, in CI and under NO_COLOR. Use it in a `with` block.

    total: the number of steps. start: the step that a resumed run continues from.
    """

    def __init__(self, total: int, start: int = 0, *, title: str = "training", console: Console | None = None) -> None:
        from rich.console import Console

        self.total = total
        self.title = title
        self.console = console or Console(file=sys.stderr)
        self.plain = is_plain(self.console)
        self.tokens_per_second = 0.0
        self._start = self._done = start
        self._tokens = 0
        self._busy = 0.0
        self._resumed_at = 0.0
        self._bar: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> StepDisplay:
        self._resumed_at = time.monotonic()
        if not self.plain:
            self._bar = self._make_bar()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar[0].stop()

    def step(self, step: int, tokens: int, metrics: Mapping[str, float]) -> None:
        """Report that a step over `tokens` tokens is done, and show its `metrics`."""
        self._busy += time.monotonic() - self._resumed_at
        self._resumed_at = time.monotonic()
        self._done, self._tokens = step, self._tokens + tokens
        self.tokens_per_second = self._tokens / max(self._busy, 1e-9)
        left = (self.total - step) * self._busy / max(step - self._start, 1)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        line = f"{shown}  {self.tokens_per_second:,.0f} tokens/s  {_duration(left)} left"
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, completed=step, shown=line)
        elif step in (self._start + 1, self.total) or step % max(self.total // PLAIN_LINES, 1) == 0:
            self.note(f"{self.title} {step}/{self.total}  {line}")

    def note(self, text: str) -> None:
        """Print a line; the time since the last step is not counted as training."""
        self.console.print(redacted(text), markup=False, highlight=False, soft_wrap=True)
        self._resumed_at = time.monotonic()

    def rest(self) -> None:
        """Leave the time since the last step, such as an evaluation's, out of the speed."""
        self._resumed_at = time.monotonic()

    def _make_bar(self) -> tuple[Progress, TaskID]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
        )
        bar = Progress(*columns, console=self.console)
        task = bar.add_task(self.title, total=self.total, completed=self._start, shown="")
        bar.start()
        return bar, task


def quiet_libraries() -> None:
    """Where output is plain, switch off other libraries' progress bars.

    For the command line only, before transformers is imported: it changes this process's environment.
    """
    from rich.console import Console

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
