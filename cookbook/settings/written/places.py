"""Files that a configuration names: from the working folder, else from the configuration's own folder."""

from __future__ import annotations

from collections.abc import Mapping
from glob import glob
from pathlib import Path
from typing import Any

#: Settings that name what is read. What is written (`out`, `references`) lies below the working folder.
READ = ("data", "eval_data", "start_from", "teacher", "model")
#: Values of theirs that are no paths.
_NAMES = ("tiny", "tiny-encoder", "minilm", "self")


def beside(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings, those in `READ` that name nothing in the working folder as what lies at that place in `folder`, if anything."""
    return {name: _place(value, folder) if name in READ else value for name, value in values.items()}


def _place(value: Any, folder: Path) -> Any:
    if not isinstance(value, str | Path) or str(value) in ("", *_NAMES) or _is_there(Path(value)):
        return value
    there = folder / value
    return type(value)(there) if _is_there(there) else value


def _is_there(path: Path) -> bool:
    """Whether there is a file, a folder or, for a pattern, one that matches."""
    try:
        return path.exists() or bool(glob(str(path), recursive=True))
    except (OSError, ValueError):  # a text that no path can be
        return False
