"""What there is to say about a run's folder in one line; a damaged one has its problem said."""

from __future__ import annotations

import json
import os
import socket
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ...datums.errors import LossbookError
from ..diagnose.history import History, read_history
from ..diagnose.numbers import direction, is_measured
from ..run.names import ADAPTER, CHECKPOINTS, CONFIG, METRICS, MODEL, OWNER
from ..run.provenance import Provenance, read_provenance
from ..run.records import read_settings
from .numbers import final_numbers

State = Literal["running", "finished", "interrupted", "damaged"]
#: Settings that only one recipe has, by which its runs are known; the first that fits.
_MARKS = {
    "group_size": "rl",
    "teacher": "distill",
    "matryoshka_dimensions": "embed",
    "references": "dpo",
    "wrong_answer": "reward",
    "train_on": "sft",
}


@dataclass(frozen=True)
class RunSummary:
    """One run.

    numbers    final numbers (`final_numbers`)
    step       the last step of which there are numbers; steps: those asked for, None where that is not known
    date       when it began, ISO 8601 in UTC; seconds: how long it ran, None where that is not known
    problem    why it is damaged
    """

    folder: Path
    state: State
    recipe: str = ""
    model: str = ""
    loss: str = ""
    step: int = 0
    steps: int | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    date: str = ""
    seconds: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def headline(self) -> tuple[str, float] | None:
        """The main number: one that has a direction, what was held out first."""
        known = [key for key in self.numbers if direction(key)]
        known.sort(key=lambda key: (not is_measured(key), direction(key) < 0))
        return (known[0], self.numbers[known[0]]) if known else None

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "folder": str(self.folder)}


def summarize(folder: Path) -> RunSummary:
    """A run's summary. Never raises for what is in the folder: a damaged run says what is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a killed process left half a line, or a checkpoint is damaged
            settings = read_settings(folder)
            history = read_history(folder) if _has_metrics(folder) else History([])
            parts = read_provenance(folder)
        return _summary(folder, settings, history, parts)
    except (LossbookError, OSError, ValueError) as error:
        return RunSummary(folder, "damaged", problem=" ".join(str(error).split()))


def _has_metrics(folder: Path) -> bool:
    path = folder / METRICS
    return path.exists() and path.stat().st_size > 0


def _summary(folder: Path, settings: Mapping[str, Any], history: History, parts: list[Provenance]) -> RunSummary:
    recipe = next((name for mark, name in _MARKS.items() if mark in settings), "")
    began = parts[0].date if parts else _time((folder / CONFIG).stat().st_mtime)
    return RunSummary(
        folder,
        _state(folder),
        recipe,
        Path(str(settings.get("model", ""))).name,
        str(settings.get("loss", "")),
        max((int(row["step"]) for row in history.rows), default=0),
        parts[-1].steps if parts else settings.get("steps"),
        final_numbers(history),
        began,
        sum(part.seconds for part in parts) if parts else None,
        dict(settings),
    )


def _state(folder: Path) -> State:
    if _is_running(folder):
        return "running"
    results = [path.stat().st_mtime for name in (ADAPTER, MODEL) if (path := folder / name).is_dir()]
    saved = [path.stat().st_mtime for path in folder.glob(f"{CHECKPOINTS}/step-*")]
    return "finished" if results and max(results) >= max(saved, default=0.0) else "interrupted"


def _is_running(folder: Path) -> bool:
    """Whether the process that its `in_use.json` names is alive; one on another machine counts as such."""
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        process, host = int(owner["pid"]), str(owner["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if host != socket.gethostname():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
