"""Whether a run can begin, or go on, in a folder: two runs are never mixed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...datums.errors import RunError
from .names import CONFIG, DATA_DIGEST, LOCK, OWNER, REPORT
from .records import read_settings


@dataclass(frozen=True)
class Opening:
    """How a run is opened; see `open_run`."""

    settings: Mapping[str, Any]
    resume: bool
    overwrite: bool
    may_change: Collection[str]

    def check(self, path: Path) -> None:
        """Raise RunError unless the folder can be opened in this way."""
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file; a run needs a folder")
        if self.resume:
            _check_same(path, self.settings, self.may_change)
        elif path.exists() and _has_content(path):
            if not self.overwrite:
                raise RunError(
                    f"{path} is not empty. Choose --resume to continue the run in it, --overwrite to replace it, or "
                    "another folder with --out"
                )
            read_settings(path)  # raises for a folder without a run, which must not be emptied


def _has_content(path: Path) -> bool:
    """Whether a folder holds more than a run that ended before its first metrics."""
    return any(entry.name not in (CONFIG, REPORT, DATA_DIGEST, LOCK, OWNER) for entry in path.iterdir())


def _check_same(path: Path, settings: Mapping[str, Any], may_change: Collection[str]) -> None:
    before = read_settings(path)
    now = json.loads(json.dumps(dict(settings)))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    refused = [key for key in changed if key not in may_change]
    if refused:
        shown = "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in refused)
        raise RunError(
            f"{path} holds a run with other settings, so it cannot be continued: {shown}. Take its settings with "
            f"--config {path / CONFIG}"
        )
