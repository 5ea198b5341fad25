"""What a diagnostic says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .history import History

Level = Literal["problem", "warning", "note"]

#: Fewer values than these show no trend.
FEWEST = 10


@dataclass(frozen=True)
class Finding:
    """What looks wrong in a run.

    level   problem: the numbers are broken; warning: it probably learns less than it could; note: worth knowing
    title   what it is, in a few words
    seen    the numbers it was seen in
    do      what to try, the likeliest first
    why     the threshold's reason and source
    """

    level: Level
    title: str
    seen: str
    do: str
    why: str


#: Looks at a run; None where nothing is wrong, or where what it looks at was not recorded.
Diagnostic = Callable[[History], Finding | None]
