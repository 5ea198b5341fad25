"""The files of a run: reading them, and what is kept with a checkpoint. Somebody else may have written them, so what is not as a run writes it is refused, in one line."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ...datums import disk
from ...datums.checks.json_text import strict_json
from ...datums.errors import DataFileError, RunError
from .names import BEST, BY_STEP, CONFIG, KEPT

#: Larger steps are not exact as floats, which plots and pages need.
LARGEST_STEP = 2**53
Model = TypeVar("Model", bound=BaseModel)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of the run in a folder. Raises RunError where there is none, or where it cannot be read."""
    try:
        settings = read_json(path / CONFIG)
    except DataFileError as error:
        raise RunError(str(error)) from None
    if settings is None:
        raise RunError(f"{path} holds no run: there is no {CONFIG} in it. Is --out the folder of the run?")
    if not isinstance(settings, dict):
        raise RunError(f"{path / CONFIG} is damaged: it holds no settings")
    return settings


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, with null as NaN; [] without a file. Raises as `read_rows` does."""
    return [{key: math.nan if v is None else v for key, v in row.items()} for row in read_rows(path)]


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of one of a run's `BY_STEP` files; [] without a file.

    An unfinished last line, as a killed process leaves it, is dropped with a warning. Any other line that is not an object
    with a whole number as its `step` raises DataFileError with the line's number.
    """
    path = Path(path)
    if (text := _text(path)) is None:
        return []
    *whole, rest = text.split("\n")
    if rest:
        warnings.warn(f"{path}: dropped an unfinished last line", stacklevel=2)
    return [_row(line, path, number) for number, line in enumerate(whole, start=1)]


def read_json(path: Path) -> Any:
    """The value in a JSON file; None without a file. Raises DataFileError for a file that is damaged or cannot be read."""
    if (text := _text(path)) is None:
        return None
    try:
        return strict_json(text, non_finite=True)
    except ValueError as error:
        raise DataFileError(f"{path} is damaged: {error}") from None


def best_step(run: Path) -> int | None:
    """The step of the best checkpoint, by best.json; None without early stopping. Raises DataFileError for a damaged file."""
    record = read_json(run / BEST)
    return None if record is None else checked(_Best, record, BEST).step


class _Best(BaseModel):
    step: int


def checked(model: type[Model], value: Any, place: str) -> Model:
    """A value of a file as the model that describes it. Raises DataFileError with the first place that is not so."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"][:6]))[:200]
        raise DataFileError(f"{place} is damaged: {where or 'it'}: {first['msg'][:200]}") from None


def keep(run: Path, checkpoint: str, state: Any) -> None:
    """Write `kept/CHECKPOINT.json`: a recipe's own state (JSON), and size and hash of each file by step as it is now.

    These files are flushed to the disk first, so that a power failure takes no row from a checkpoint. Raises OSError.
    """
    rows = {}
    for path in (run / name for name in BY_STEP):
        if path.exists():
            disk.sync(path)
            content = path.read_bytes()
            rows[path.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    disk.make_folder(run / KEPT)
    disk.write_file(run / KEPT / f"{checkpoint}.json", _sealed({"state": state, "rows": rows}))


def kept(run: Path, checkpoint: str) -> dict[str, Any] | None:
    """The `state` and the `rows` that were kept with a checkpoint; None where the file is missing.

    Raises RunError for a file that is damaged: this one, or one by step whose rows up to the checkpoint are not as they were.
    """
    path = run / KEPT / f"{checkpoint}.json"
    if not path.exists():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        record = json.loads(text)
        if text != _sealed({"state": record["state"], "rows": record["rows"]}):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise RunError(
            f"{path} is damaged: it is not as it was written. Restore it from a copy, or remove {checkpoint} in the folder "
            "of checkpoints to go on from the one before"
        ) from None
    for name, written in record["rows"].items():
        content = (run / name).read_bytes()[: written["bytes"]] if (run / name).exists() else b""
        if hashlib.sha256(content).hexdigest() != written["sha256"]:
            raise RunError(
                f"{run / name} is damaged: its rows up to {checkpoint} are not as they were written. Restore it from a copy, "
                f"or delete {path} to go on with them as they are"
            )
    return record


def rows_until(path: Path, step: int, size: int | None = None) -> str:
    """The lines of a file by step up to a step; size: bytes that they take, where that is known."""
    if size is not None:
        return path.read_bytes()[:size].decode()
    rows = read_rows(path)
    lines = path.read_text(encoding="utf-8").split("\n") if rows else []
    return "".join(f"{line}\n" for line, row in zip(lines, rows, strict=False) if row["step"] <= step)


def _row(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = strict_json(line, non_finite=True)
        step = row["step"]
    except (ValueError, TypeError, KeyError) as error:
        why = f" ({error})" if type(error) is ValueError else ""
        raise DataFileError(f"{path.name}, line {number}: not a row of {path.stem}{why}: {line[:80]!r}") from None
    if type(step) is not int or not 0 <= step <= LARGEST_STEP:
        raise DataFileError(f"{path.name}, line {number}: step is {repr(step)[:80]}, not an integer from 0 to 2**53")
    return {"step": step, **row}


def _text(path: Path) -> str | None:
    """The text of a file; None without one."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataFileError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataFileError(f"{path} is damaged: it is not UTF-8 at byte {error.start}") from None


def _sealed(record: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(record).encode()).hexdigest()
    return json.dumps({**record, "sha256": digest}) + "\n"
