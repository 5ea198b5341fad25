"""Rows from wherever data are: one function that knows every source by its name."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataFileError, did_you_mean
from .jsonl import COMPRESSED, Row, read_jsonl
from .tables import is_saved_dataset, read_dataset, read_hub_dataset, read_parquet, read_saved_dataset

#: How a source of Hugging Face's `datasets` begins.
DATASETS = "datasets:"
JSONL_ENDINGS = (".jsonl", ".ndjson", ".json")
PARQUET_ENDINGS = (".parquet", ".pq")
#: What to do with files of other kinds.
_ELSEWHERE = {
    ".csv": "`datasets.Dataset.from_csv(FILE).to_json(NEW)` makes JSON Lines of it",
    ".tsv": '`datasets.Dataset.from_csv(FILE, sep="\\t").to_json(NEW)` makes JSON Lines of it',
    ".arrow": "`datasets.Dataset.from_file(FILE).to_parquet(NEW)` makes Parquet of it",
    ".txt": "Rows need names for what they hold, such as 'prompt' and 'completion'",
    ".zip": "Unpack it first",
    ".bz2": "Unpack it first",
    ".xz": "Unpack it first",
}

#: What `read_rows` takes: a name, several of them, or a `datasets` object.
Source = str | Path | Sequence[str | Path] | Any


def read_rows(source: Source, *, limit: int | None = None) -> Iterator[Row]:
    """The rows of a data source, one at a time; each knows its place (`train.jsonl, line 7`, `train.parquet, row 7`).

    source  a file: JSON Lines (.jsonl, .ndjson, .json; compressed with .gz or .zst), or Parquet (.parquet)
            a pattern: data/*.jsonl, the files in the order of their names
            a folder that `datasets` saved, or datasets:FOLDER:SPLIT
            datasets:NAME[[:CONFIG]:SPLIT], a data set of the Hugging Face hub, fetched while it is read
            several of these in a list; or a `datasets.Dataset` or `IterableDataset`
    limit   how many rows at most, from the first on

    Lines and rows are counted from 1, in each file anew. Memory holds one line, or one batch of a table's rows. All but
    JSON Lines as it is or in .gz needs the extra `data`. Raises DataFileError, naming the source and, where there is
    one, the row; MissingExtraError.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise DataFileError(f"limit is how many rows to read, at least 1, not {limit!r}")
    return itertools.islice(_rows(source), limit)


def _rows(source: Source) -> Iterator[Row]:
    if hasattr(source, "with_format"):
        yield from read_dataset(source)
    elif isinstance(source, str | Path) and str(source).startswith(DATASETS):
        yield from _named_dataset(str(source))
    elif isinstance(source, str | Path):
        for path in _files(source):
            yield from _file(path)
    elif isinstance(source, Sequence) and source and all(isinstance(one, str | Path) for one in source):
        for one in source:
            yield from _rows(one)
    elif isinstance(source, dict):
        yield from read_dataset(source)  # a DatasetDict: it says which splits there are
    else:
        raise DataFileError(
            f"a data source is a file's name, a list of them or a `datasets` object, not {_kind(source)}. Rows that are "
            "in memory go to build_datums"
        )


def _files(source: str | Path) -> list[Path]:
    """The files a name or a pattern stands for; a name that exists is no pattern."""
    path = Path(source)
    if path.exists():
        return [path]
    if glob.has_magic(str(source)):
        found = sorted(map(Path, glob.glob(str(source), recursive=True)))
        if not found:
            raise DataFileError(f"{source}: no file matches")
        return found
    raise DataFileError(f"{source}: cannot be read: No such file or directory.{_missing_hint(path)}")


def _missing_hint(path: Path) -> str:
    if path.parent.is_dir():
        near = did_you_mean(path.name, [other.name for other in path.parent.iterdir()], cutoff=0.8)
        if near:
            return near
    is_hub_name = not path.suffix and not path.is_absolute() and len(path.parts) == 2
    return f" A data set of the hub is named {DATASETS}{path}" if is_hub_name else ""


def _file(path: Path) -> Iterator[Row]:
    if path.is_dir():
        if is_saved_dataset(path):
            return read_saved_dataset(path)
        raise DataFileError(
            f"{path}: is a folder, and none that `datasets` saved. For the files in it write {path}/*.jsonl"
        )
    ending = path.suffix.lower()
    if ending in COMPRESSED:
        ending = Path(path.stem).suffix.lower()
    if ending in JSONL_ENDINGS:
        return read_jsonl(path)
    if path.suffix.lower() in PARQUET_ENDINGS:
        return read_parquet(path)
    known = ", ".join((*JSONL_ENDINGS, *PARQUET_ENDINGS))
    advice = _ELSEWHERE.get(path.suffix.lower())
    hint = f". {advice}" if advice else ""
    raise DataFileError(
        f"{path}: its name does not say what it holds; known are {known}, and JSON Lines with "
        f"{' or '.join(COMPRESSED)} behind{hint}"
    )


def _named_dataset(source: str) -> Iterator[Row]:
    """`datasets:NAME[[:CONFIG]:SPLIT]`, where NAME may be a saved folder, which has no configurations."""
    name, *rest = source.removeprefix(DATASETS).split(":")
    if not name or len(rest) > 2 or "" in rest or "[" in source:
        hint = "; for the first rows of a split, use the limit" if "[" in source else ""
        raise DataFileError(
            f"{source!r} is not {DATASETS}NAME, {DATASETS}NAME:SPLIT or {DATASETS}NAME:CONFIG:SPLIT{hint}"
        )
    split = rest[-1] if rest else None
    folder = Path(name)
    if not folder.is_dir():
        return read_hub_dataset(name, rest[0] if len(rest) == 2 else None, split)
    if len(rest) == 2:
        raise DataFileError(f"{source}: a saved folder has no configurations; write {DATASETS}{name}:{split}")
    if not is_saved_dataset(folder):
        raise DataFileError(f"{folder}: is a folder, and none that `datasets` saved")
    return read_saved_dataset(folder, split)


def _kind(value: Any) -> str:
    return (
        f"an empty {type(value).__name__}" if isinstance(value, Sequence) and not value else f"a {type(value).__name__}"
    )
