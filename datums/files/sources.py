"""Rows from any data source: files, patterns, folders and `datasets`."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataFileError, did_you_mean
from .jsonl import COMPRESSED, Row, read_jsonl
from .tables import is_saved_dataset, read_dataset, read_hub_dataset, read_parquet, read_saved_dataset

#: Prefix of a source of Hugging Face's `datasets`.
DATASETS = "datasets:"
JSONL_ENDINGS = (".jsonl", ".ndjson", ".json")
PARQUET_ENDINGS = (".parquet", ".pq")
#: How to convert files of other kinds.
_CONVERSIONS = {
    ".csv": "Convert it to JSON Lines with `datasets.Dataset.from_csv(FILE).to_json(NEW)`",
    ".tsv": 'Convert it to JSON Lines with `datasets.Dataset.from_csv(FILE, sep="\\t").to_json(NEW)`',
    ".arrow": "Convert it to Parquet with `datasets.Dataset.from_file(FILE).to_parquet(NEW)`",
    ".txt": "A row needs keys, such as 'prompt' and 'completion'",
    ".zip": "Decompress it first",
    ".bz2": "Decompress it first",
    ".xz": "Decompress it first",
}

#: A data source: the name of one, a list of names, or a `datasets` object.
Source = str | Path | Sequence[str | Path] | Any


def read_rows(source: Source, *, limit: int | None = None) -> Iterator[Row]:
    """The rows of a data source, one at a time, each with its `place` (`train.jsonl, line 7`, `train.parquet, row 7`).

    source  a file: JSON Lines (.jsonl, .ndjson, .json, also with .gz or .zst) or Parquet (.parquet, .pq)
            a pattern: data/*.jsonl, files in the order of their names
            a folder saved by `datasets`, or datasets:FOLDER:SPLIT
            datasets:NAME[[:CONFIG]:SPLIT], a data set on the Hugging Face hub, streamed
            a list of these; or a `datasets.Dataset` or `IterableDataset`
    limit   most rows to read, from the first on

    Lines and rows are counted from 1 in each file. Memory holds one line or one batch of a table. Plain and .gz JSON
    Lines need no extra, all else needs the extra `data`. Raises DataFileError, naming the source and the row, or
    MissingExtraError.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise DataFileError(f"limit must be a number of rows, at least 1, not {limit!r}")
    return itertools.islice(_rows(source), limit)


def first_rows(source: Source, count: int) -> tuple[list[Row], bool]:
    """The first `count` rows of a source, and whether there are more, readable or not. Raises as `read_rows` does."""
    read_rows(source, limit=count)  # refuses other numbers
    rows = read_rows(source, limit=count + 1)
    first = list(itertools.islice(rows, count))
    try:
        return first, next(rows, None) is not None
    except DataFileError:
        return first, True


def source_files(source: Source) -> list[Path]:
    """The files that `read_rows` reads of a source, in order; none for a data set on the hub, or an object.

    Raises DataFileError for a file that is not there.
    """
    if hub_name(source) is not None:
        return []
    if isinstance(source, str | Path) and str(source).startswith(DATASETS):
        return _files_in(Path(str(source).removeprefix(DATASETS).split(":")[0]))
    if isinstance(source, str | Path):
        return [file for path in _files(source) for file in (_files_in(path) if path.is_dir() else [path])]
    if isinstance(source, Sequence):
        return [file for name in source for file in source_files(name)]
    return []


def hub_name(source: Source) -> str | None:
    """The name on the hub of a source `datasets:NAME...` that is not a folder; None for other sources."""
    if not isinstance(source, str | Path) or not str(source).startswith(DATASETS):
        return None
    name = str(source).removeprefix(DATASETS).split(":")[0]
    return None if Path(name).is_dir() else name


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _rows(source: Source) -> Iterator[Row]:
    if hasattr(source, "with_format"):
        yield from read_dataset(source)
    elif isinstance(source, str | Path) and str(source).startswith(DATASETS):
        yield from _named_dataset(str(source))
    elif isinstance(source, str | Path):
        for path in _files(source):
            yield from _file(path)
    elif isinstance(source, Sequence) and source and all(isinstance(name, str | Path) for name in source):
        for name in source:
            yield from _rows(name)
    elif isinstance(source, dict):
        yield from read_dataset(source)  # a DatasetDict: the error lists its splits
    else:
        raise DataFileError(
            f"a data source is a file's name, a list of names or a `datasets` object, not {_kind(source)}. For rows in "
            "memory use build_datums"
        )


def _files(source: str | Path) -> list[Path]:
    """The files that a name or a pattern stands for. A name that exists is not a pattern."""
    path = Path(source)
    if path.exists():
        return [path]
    if glob.has_magic(str(source)):
        paths = sorted(map(Path, glob.glob(str(source), recursive=True)))
        if not paths:
            raise DataFileError(f"{source}: no file matches")
        return paths
    raise DataFileError(f"{source}: cannot be read: No such file or directory.{_missing_hint(path)}")


def _missing_hint(path: Path) -> str:
    if path.parent.is_dir():
        near = did_you_mean(path.name, [other.name for other in path.parent.iterdir()], cutoff=0.8)
        if near:
            return near
    is_hub_name = not path.suffix and not path.is_absolute() and len(path.parts) == 2
    return f" For a data set on the hub write {DATASETS}{path}" if is_hub_name else ""


def _file(path: Path) -> Iterator[Row]:
    if path.is_dir():
        if is_saved_dataset(path):
            return read_saved_dataset(path)
        raise DataFileError(f"{path}: a folder that `datasets` did not save. For the files in it write {path}/*.jsonl")
    ending = path.suffix.lower()
    if ending in COMPRESSED:
        ending = Path(path.stem).suffix.lower()
    if ending in JSONL_ENDINGS:
        return read_jsonl(path)
    if path.suffix.lower() in PARQUET_ENDINGS:
        return read_parquet(path)
    known = ", ".join((*JSONL_ENDINGS, *PARQUET_ENDINGS))
    advice = _CONVERSIONS.get(path.suffix.lower())
    hint = f". {advice}" if advice else ""
    raise DataFileError(
        f"{path}: the ending of its name is not known. Known are {known}, and {' or '.join(COMPRESSED)} after an ending "
        f"of JSON Lines{hint}"
    )


def _named_dataset(source: str) -> Iterator[Row]:
    """`datasets:NAME[[:CONFIG]:SPLIT]`, where NAME may be a saved folder, which has no configurations."""
    name, *rest = source.removeprefix(DATASETS).split(":")
    if not name or len(rest) > 2 or "" in rest or "[" in source:
        hint = "; to read the first rows of a split, use the limit" if "[" in source else ""
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
        raise DataFileError(f"{folder}: a folder that `datasets` did not save")
    return read_saved_dataset(folder, split)


def _kind(value: Any) -> str:
    return (
        f"an empty {type(value).__name__}" if isinstance(value, Sequence) and not value else f"a {type(value).__name__}"
    )
