"""Rows of tables: Parquet files and data sets of Hugging Face's `datasets`, one batch of rows in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import DataFileError, did_you_mean
from ..extras import require
from .jsonl import Row

#: Rows of a Parquet file that are Python objects at once.
BATCH_ROWS = 64
#: Characters of a library's error message that are shown: a few lines.
LONGEST_MESSAGE = 400


def read_parquet(path: str | Path) -> Iterator[Row]:
    """The rows of a Parquet file. Raises DataFileError for a file that cannot be read or has no rows.

    Memory holds one batch of `BATCH_ROWS` rows and the column pages that contain them.
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
        raise DataFileError(f"{path}: cannot be read as Parquet{after}: {_short_message(error)}") from error
    if not number:
        raise DataFileError(f"{path}: holds no rows")


def read_dataset(dataset: Any, name: str = "dataset") -> Iterator[Row]:
    """The rows of a `datasets.Dataset` or `IterableDataset`, as Python values whatever its format.

    Raises DataFileError when there are none, or when a row cannot be fetched.
    """
    if isinstance(dataset, Mapping):
        raise DataFileError(f"{name} has the splits {', '.join(map(str, dataset))}; choose one of them")
    number = 0
    try:
        for number, values in enumerate(dataset.with_format(None), 1):
            yield table_row(values, f"{name}, row {number}")
    except Exception as error:  # from the network, the files or the decoders of features
        raise DataFileError(f"{name}, after row {number}: cannot be read: {_short_message(error)}") from error
    if not number:
        raise DataFileError(f"{name}: holds no rows")


def read_saved_dataset(folder: str | Path, split: str | None = None) -> Iterator[Row]:
    """The rows of a folder written by `save_to_disk`. `split` is needed if it holds several."""
    folder = Path(folder)
    datasets = require("datasets", "data", "reading a saved data set")
    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataFileError(f"{folder}: cannot be read as a saved data set: {_short_message(error)}") from error
    dataset, split = _choose(saved, split, str(folder), f"datasets:{folder}")
    yield from read_dataset(dataset, f"{folder.name}:{split}" if split else folder.name)


def read_hub_dataset(name: str, config: str | None = None, split: str | None = None) -> Iterator[Row]:
    """The rows of a data set on the Hugging Face hub, streamed."""
    datasets = require("datasets", "data", "reading a data set from the hub")
    try:
        loaded = datasets.load_dataset(name, config, streaming=True)
    except Exception as error:  # from the network, the hub or the data set's files
        raise DataFileError(f"datasets:{name}: cannot be read from the hub: {_short_message(error)}") from error
    whole = name if config is None else f"{name}:{config}"
    dataset, split = _choose(loaded, split, whole, f"datasets:{whole}")
    yield from read_dataset(dataset, f"{whole}:{split}")


def table_row(values: Mapping[str, Any], place: str) -> Row:
    """A row of a table, without the nulls inside its cells, which stand for fields of other rows."""
    row = Row({key: _without_nulls(value) for key, value in values.items()})
    row.place = place
    return row


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _choose(loaded: Any, split: str | None, name: str, source: str) -> tuple[Any, str | None]:
    """The requested split, or the only one, and its name; a data set without splits as it is."""
    if not isinstance(loaded, Mapping):
        if split is not None:
            raise DataFileError(f"{name} has no splits, so there is no {split!r}; leave it out: {source}")
        return loaded, None
    splits = list(map(str, loaded))
    if split is None and len(splits) == 1:
        split = splits[0]
    if split not in splits:
        wanted = "needs a split" if split is None else f"has no split {split!r}"
        hint = did_you_mean(split or "", splits)
        raise DataFileError(f"{name} {wanted}; there are {', '.join(splits)}: {source}:{splits[0]}.{hint}")
    return loaded[split], split


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list) and isinstance(next((v for v in value if v is not None), None), dict | list):
        return [_without_nulls(item) for item in value]
    return value


def _short_message(error: BaseException) -> str:
    """The error's message on one line, cut if it is long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}…"
