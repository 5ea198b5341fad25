"""What was found: a verdict for each promise, as a table and as JSON."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["holds", "fails", "does not apply", "not offered"]
_VERDICTS: tuple[Verdict, ...] = ("holds", "fails", "does not apply", "not offered")


@dataclass(frozen=True)
class Finding:
    """What a server does about one promise.

    id, sentence   the promise
    verdict        holds; fails; does not apply: it cannot be asked this way; not offered: the server refuses the call, clearly
    figure         what was measured, or what it answered
    look_at        where to look if it fails
    seconds        how long the check took
    """

    id: str
    sentence: str
    verdict: Verdict
    figure: str
    look_at: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """The findings of one check of a server, in order.

    server    what was asked: an address, or this process
    settings  of the check
    """

    server: str
    settings: dict[str, Any]
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> tuple[Finding, ...]:
        """Findings whose promise is broken."""
        return tuple(one for one in self.findings if one.verdict == "fails")

    @property
    def exit_code(self) -> int:
        """1 where a promise is broken, else 0."""
        return 1 if self.failed else 0

    @property
    def summary(self) -> str:
        """How many promises have each verdict."""
        counts = Counter(one.verdict for one in self.findings)
        return ", ".join(f"{counts[verdict]} {verdict}" for verdict in _VERDICTS if counts[verdict])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "server": self.server,
            "settings": self.settings,
            "summary": {verdict: sum(one.verdict == verdict for one in self.findings) for verdict in _VERDICTS},
            "findings": [asdict(one) for one in self.findings],
        }

    def as_json(self) -> str:
        """The same as text."""
        return json.dumps(self.as_dict(), indent=2)

    def table(self, width: int = 120) -> str:
        """A line for each promise; what is broken has its sentence, and what to look at, below."""
        ids = max((len(one.id) for one in self.findings), default=0)
        lines = [f"{self.server}, model {self.settings.get('model')}"]
        for one in self.findings:
            head = f"{one.verdict:<14}  {one.id:<{ids}}  "
            lines.append(textwrap.shorten(head + one.figure, 10_000) if width <= 0 else _cut(head + one.figure, width))
            if one.verdict == "fails":
                lines += textwrap.wrap(
                    f"promise: {one.sentence} Measured: {one.figure}. Look at: {one.look_at}",
                    max(width, 40),
                    initial_indent=" " * 16,
                    subsequent_indent=" " * 16,
                )
        return "\n".join([*lines, self.summary])


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 3]}..."
