"""The result of checking a loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["passed", "failed", "skipped", "expected-failure"]


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    message: why it failed, was skipped or was excused; "" if it passed. reproducer: Python source that fails the same
    way; "" unless an example made the check fail. error: the exception.
    """

    check: str
    status: Status
    message: str = ""
    reproducer: str = ""
    error: BaseException | None = field(default=None, compare=False, repr=False)

    @property
    def is_failure(self) -> bool:
        """Whether it failed without being expected to."""
        return self.status == "failed"

    def __str__(self) -> str:
        lines = [f"{self.status:<16} {self.check}{': ' if self.message else ''}{self.message}"]
        if self.is_failure and self.reproducer:
            lines += ["", *(f"    {line}".rstrip() for line in self.reproducer.splitlines()), ""]
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """The results of all checks of one loss, in the order they ran. Print it, or iterate over it."""

    loss: str
    results: tuple[CheckResult, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed, other than expected failures."""
        return not self.failures

    @property
    def failures(self) -> list[CheckResult]:
        """The results that failed."""
        return [result for result in self.results if result.is_failure]

    def __iter__(self) -> Iterator[CheckResult]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, check: str) -> CheckResult:
        """The result of one check, by name."""
        return {result.check: result for result in self.results}[check]

    def __str__(self) -> str:
        counts = Counter(result.status for result in self.results)
        head = f"{self.loss}: {', '.join(f'{count} {status}' for status, count in counts.items())}"
        return "\n".join([head, *(str(result) for result in self.results)])
