"""Rows of tables: Parquet files, and data sets of Hugging Face's `datasets`, a batch of rows in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import DataFileError, did_you_mean
from ..extras import require
from .jsonl import Row

#: Rows of a Parquet file that are Python objects at a time.
BATCH_ROWS = 64
#: Characters of a library's error that are passed on: a few of its lines.
LONGEST_MESSAGE = 400


def read_parquet(path: str | Path) -> Iterator[Row]:
    """The rows of a Parquet file. Raises DataFileError for a file that cannot be read or has no rows.

    Memory holds one batch of `BATCH_ROWS` rows, and the pages of the columns that they are from.
    """
    path = Path(path)
    arrow = require("pyarrow", "data", "reading Parquet files")
    parquet = require("pyarrow.parquet", "data", "reading Parquet files")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield table_row(values, f"{path.name}, row {number}")
    except (OSError, UnicodeDecodeError, arrow.ArrowException) as error:
        after = f" after row {number}" if number else ""
        raise DataFileError(f"{path}: cannot be read as Parquet{after}: {_said(error)}") from error
    if not number:
        raise DataFileError(f"{path}: holds no rows")


def read_dataset(dataset: Any, name: str = "dataset") -> Iterator[Row]:
    """The rows of a `datasets.Dataset` or `IterableDataset`, whatever format it is set to give.

    Raises DataFileError when there are none, or when a row cannot be fetched.
    """
    if isinstance(dataset, Mapping):
        raise DataFileError(f"{name} has the splits {', '.join(map(str, dataset))}; choose one of them")
    number = 0
    try:
        for number, values in enumerate(dataset.with_format(None), 1):
            yield table_row(values, f"{name}, row {number}")
    except Exception as error:  # whatever the network, the files and the features' decoders bring about
        raise DataFileError(f"{name}, after row {number}: cannot be read: {_said(error)}") from error
    if not number:
        raise DataFileError(f"{name}: holds no rows")


def read_saved_dataset(folder: str | Path, split: str | None = None) -> Iterator[Row]:
    """The rows of a folder that `save_to_disk` wrote; `split` where it holds several."""
    folder = Path(folder)
    datasets = require("datasets", "data", "reading a saved data set")
    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataFileError(f"{folder}: cannot be read as a saved data set: {_said(error)}") from error
    one, split = _choose(found, split, str(folder), f"datasets:{folder}")
    yield from read_dataset(one, f"{folder.name}:{split}" if split else folder.name)


def read_hub_dataset(name: str, config: str | None = None, split: str | None = None) -> Iterator[Row]:
    """The rows of a data set of the Hugging Face hub, fetched while they are read."""
    datasets = require("datasets", "data", "reading a data set of the hub")
    try:
        found = datasets.load_dataset(name, config, streaming=True)
    except Exception as error:  # whatever the network, the hub and the data set's files bring about
        raise DataFileError(f"datasets:{name}: cannot be read from the hub: {_said(error)}") from error
    whole = name if config is None else f"{name}:{config}"
    one, split = _choose(found, split, whole, f"datasets:{whole}")
    yield from read_dataset(one, f"{whole}:{split}")


def table_row(values: Mapping[str, Any], place: str) -> Row:
    """A table's row, without the nulls inside its cells: they are fields that only other rows have."""
    row = Row({key: _without_nulls(value) for key, value in values.items()})
    row.place = place
    return row


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _choose(found: Any, split: str | None, name: str, source: str) -> tuple[Any, str | None]:
    """The split asked for, or the only one, and its name; a single data set as it is."""
    if not isinstance(found, Mapping):
        if split is not None:
            raise DataFileError(f"{name} has no splits, so there is no {split!r}; leave it out: {source}")
        return found, None
    splits = list(map(str, found))
    if split is None and len(splits) == 1:
        split = splits[0]
    if split not in splits:
        wanted = "needs a split" if split is None else f"has no split {split!r}"
        hint = did_you_mean(split or "", splits)
        raise DataFileError(f"{name} {wanted}; there are {', '.join(splits)}: {source}:{splits[0]}.{hint}")
    return found[split], split


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list) and isinstance(next((v for v in value if v is not None), None), dict | list):
        return [_without_nulls(item) for item in value]
    return value


def _said(error: BaseException) -> str:
    """The error's message in one line, its beginning if it is long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}…"
