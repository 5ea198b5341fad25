"""The result of a diagnostic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .history import History

Level = Literal["problem", "warning", "note"]

#: Fewer values than these show no trend.
FEWEST = 10


@dataclass(frozen=True)
class Diagnosis:
    """Something that looks wrong in a run.

    level      problem: the numbers are broken or nothing is learned; warning: training could probably go better; note:
               worth knowing
    title      the problem in a few words
    evidence   the numbers that show it
    advice     what to try, the most likely remedy first
    reason     the reason for the threshold, with its source
    """

    level: Level
    title: str
    evidence: str
    advice: str
    reason: str


#: Looks at a run; None if nothing is wrong, or if the metric it needs was not recorded.
Diagnostic = Callable[[History], Diagnosis | None]
