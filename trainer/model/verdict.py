"""`Verdict`: what a probe of a model saw."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """Whether something holds for a model, and where it does not, the reason in one clause.

    off  the largest difference that the probe saw, in units of the largest number it compared; None without a comparison
    """

    holds: bool
    reason: str = ""
    off: float | None = None

    def __bool__(self) -> bool:
        return self.holds
