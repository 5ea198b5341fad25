"""Reading the files of a run that have one row per step."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

from ...datums.errors import DataFileError


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, with null as NaN; [] without a file. Raises as `read_rows` does."""
    return [{key: math.nan if v is None else v for key, v in row.items()} for row in read_rows(path)]


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of one of a run's `BY_STEP` files; [] without a file.

    An unfinished last line, as a killed process leaves it, is dropped with a warning. Any other line that is not a row
    raises DataFileError with its number.
    """
    path = Path(path)
    if not path.exists():
        return []
    *whole, rest = path.read_text(encoding="utf-8").split("\n")
    if rest:
        warnings.warn(f"{path}: dropped an unfinished last line", stacklevel=2)
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(whole, start=1):
        try:
            row = json.loads(line)
            rows.append({"step": row["step"], **row})
        except (ValueError, AttributeError, KeyError, TypeError):
            raise DataFileError(f"{path.name}, line {number}: not a row of {path.stem}: {line[:80]!r}") from None
    return rows
