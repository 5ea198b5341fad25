"""Folders of runs: those in a folder, those that were named, and labels for them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...datums.errors import ConfigError, RunError
from ..run.names import ADAPTER, CHECKPOINTS, CONFIG, KEPT, METRICS, MODEL, TRACKER_FOLDERS

#: Folders that hold no runs, and how many levels below a folder are searched.
_SKIPPED, _DEPTH = {CHECKPOINTS, KEPT, ADAPTER, MODEL, "references", "scorer", *TRACKER_FOLDERS}, 4
#: Runs that are named where none was given.
_SHOWN = 5


def runs_below(folder: Path) -> Iterator[Path]:
    """The folders of runs in a folder and up to four levels below it, in the order of their names; it may be one itself."""
    for path, names, files in os.walk(folder):
        here = Path(path)
        depth = len(here.relative_to(folder).parts)
        is_run = METRICS in files or (CONFIG in files and _is_settings(here / CONFIG))
        names[:] = sorted(n for n in names if n not in _SKIPPED and not n.startswith(".") and depth < _DEPTH)
        if is_run:
            names.clear()
            yield here


def _is_settings(path: Path) -> bool:
    """Whether a config.json is a run's, and not a model's."""
    try:
        return {"out", "loss", "seed"} <= set(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return False


def folders_of(runs: Sequence[Path], command: str) -> list[Path]:
    """The folders that were named, and in place of one without a run of its own the runs below it, such as a sweep's.

    Raises ConfigError where none is named, with those that there are, and RunError for one that is not there.
    """
    if not runs:
        raise ConfigError(f"name the folder of a run: lossbook runs {command} RUN.{suggestion()}")
    folders: list[Path] = []
    for named in runs:
        if not named.is_dir():
            raise RunError(f"there is no folder {named}.{suggestion()}")
        folders += [*runs_below(named)] or [named]
    return folders


def suggestion() -> str:
    """` There are runs/a, runs/b`, or what makes a run."""
    names = [str(folder) for folder in runs_below(usual_folder())]
    if not names:
        return " There are no runs here yet; `lossbook train sft --out runs/first` makes one"
    more = f" and {len(names) - _SHOWN} more (`lossbook runs list`)" if len(names) > _SHOWN else ""
    return f" There are {', '.join(names[:_SHOWN])}{more}"


def usual_folder() -> Path:
    """Where runs are looked for: runs/, or the working folder where there is none."""
    return Path("runs") if Path("runs").is_dir() else Path()


def labelled(runs: Sequence[Path]) -> dict[str, Path]:
    """Folders by label: the folder's name, with as many parent folders as needed to make labels unique. Raises ConfigError for a run named twice."""
    paths = [path.resolve() for path in runs]
    if len(set(paths)) != len(paths):
        raise ConfigError("a run is named twice")
    length = 1
    while len({path.parts[-length:] for path in paths}) < len(paths):
        length += 1
    labels = ["/".join(path.parts[-length:]) for path in paths]
    return dict(zip(labels, runs, strict=True))
