"""What the conformance kit for models reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelCheck:
    """One named check: that it holds, how far it fails, or why it does not apply."""

    name: str
    outcome: Literal["holds", "fails", "does not apply"]
    detail: str

    def __str__(self) -> str:
        return f"{self.outcome:15} {self.name}: {self.detail}"


@dataclass(frozen=True)
class ModelReport:
    """All checks of a model, and what the trainer does with it. Printed, it is one line per check."""

    model: str
    checks: tuple[ModelCheck, ...]
    summary: str

    @property
    def ok(self) -> bool:
        """Whether no check fails."""
        return not any(check.outcome == "fails" for check in self.checks)

    def __str__(self) -> str:
        return "\n".join([self.model, *map(str, self.checks), f"lossbook therefore {self.summary}"])
