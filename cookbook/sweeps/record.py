"""The record of a sweep, `sweep.json` in its folder: the grid, and the state of each of its runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ...datums import disk
from ..redaction import redacted
from ..run.records import checked, read_json
from ..run.runs import writing_run

SWEEP = "sweep.json"
State = Literal["waiting", "running", "finished", "failed", "interrupted"]


class RunRecord(BaseModel):
    """One run. folder: its name below the sweep's; values: of the swept settings; error: why it failed."""

    model_config = ConfigDict(extra="forbid")

    folder: str
    values: dict[str, Any]
    state: State = "waiting"
    error: str = ""
    began: str = ""
    seconds: float = 0.0


class SweepRecord(BaseModel):
    """A sweep. command: of the recipe, such as ["train", "dpo"]; settings: those that its runs share."""

    model_config = ConfigDict(extra="forbid")

    command: list[str]
    sweep: dict[str, list[Any]]
    settings: dict[str, Any]
    runs: list[RunRecord]

    def write(self, folder: Path) -> None:
        """Write it into the sweep's folder, without secrets. Raises RunError where it cannot be written."""
        with writing_run(folder / SWEEP):
            disk.write_file(folder / SWEEP, json.dumps(redacted(self.model_dump(mode="json")), indent=2) + "\n")

    def begin(self, number: int) -> None:
        """Note that a run begins."""
        run = self.runs[number]
        run.state, run.error, run.began = "running", "", datetime.now(UTC).isoformat(timespec="seconds")

    def end(self, number: int, state: State, error: str = "") -> None:
        """Note how a run ended."""
        run = self.runs[number]
        began = datetime.fromisoformat(run.began)
        run.state, run.error, run.seconds = state, error, (datetime.now(UTC) - began).total_seconds()


def read_sweep(folder: Path) -> SweepRecord | None:
    """The record in a folder; None without one. Raises DataFileError for one that is damaged."""
    value = read_json(folder / SWEEP)
    return None if value is None else checked(SweepRecord, value, str(folder / SWEEP))


def new_record(
    command: Sequence[str], grid: Mapping[str, Sequence[Any]], settings: Mapping[str, Any], runs: list[RunRecord]
) -> SweepRecord:
    """The record of a sweep that begins, with the settings that its runs share."""
    shared = {name: value for name, value in settings.items() if name not in grid}
    plain = json.loads(json.dumps(dict(grid), default=str))
    return SweepRecord(command=list(command), sweep=plain, settings=shared, runs=runs)
