"""JSON Lines files, read row by row. Errors name the line."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, cast

from ..checks.json_text import strict_json
from ..errors import DataFileError
from ..extras import require

#: Most bytes of a line. A longer line is refused before all of it is in memory.
MAX_LINE_BYTES = 16 * 1024 * 1024
#: Blank lines may hold this many bytes more than the rows before them: in a .gz file they cost their writer nothing.
MAX_BLANK_BYTES = 1024 * 1024
#: Endings of compressed files, which are decompressed while they are read.
COMPRESSED = (".gz", ".zst")
_BOM = b"\xef\xbb\xbf"


class Row(dict[str, Any]):
    """A row of a data file: a dict with its `place` (`train.jsonl, line 7`), which errors name."""

    place: str = "row"


def read_jsonl(path: str | Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Row]:
    """The rows of a JSON Lines file: UTF-8, one JSON object per line. Memory holds one line at a time.

    A .gz or .zst file is decompressed while it is read. A byte order mark, CRLF line ends and blank lines are accepted.

    Raises DataFileError, naming file and line (from 1), for invalid UTF-8 or JSON, NaN and infinity, numbers beyond a
    float's range, a key twice in one object and other things that `strict_json` refuses, rows that are not objects, lines
    of more than `max_line_bytes` bytes, blank lines of `MAX_BLANK_BYTES` bytes more than the rows before them, and a file
    without rows.
    """
    path = Path(path)
    number = rows = blank = 0  # lines, bytes of rows, bytes of blank lines
    try:
        with ExitStack() as stack:
            file = _open(path, stack)
            while line := file.readline(max_line_bytes + 1):
                number += 1
                if len(line) > max_line_bytes:
                    raise DataFileError(
                        f"{path.name}, line {number}: longer than {max_line_bytes} bytes (max_line_bytes). Is each "
                        "row on a line of its own?"
                    )
                if number == 1:
                    line = line.removeprefix(_BOM)
                if line.strip():
                    rows += len(line)
                    yield _parse(line, f"{path.name}, line {number}")
                    continue
                blank += len(line)
                if blank > rows + MAX_BLANK_BYTES:
                    raise DataFileError(
                        f"{path.name}, line {number}: {blank} bytes of blank lines so far, and {rows} of rows. Is the file "
                        "damaged?"
                    )
    except (OSError, EOFError, zlib.error) as error:  # the latter two: a damaged .gz
        after = f" after line {number}" if number else ""
        raise DataFileError(f"{path}: cannot be read{after}: {getattr(error, 'strerror', None) or error}") from error
    if not rows:
        raise DataFileError(f"{path}: holds no rows")


def _open(path: Path, stack: ExitStack) -> IO[bytes]:
    """The file's bytes, decompressed if its name ends in .gz or .zst. The stack closes the file."""
    ending = path.suffix.lower()
    if ending == ".gz":
        return cast(IO[bytes], stack.enter_context(gzip.open(path, "rb")))
    if ending != ".zst":
        return stack.enter_context(path.open("rb"))
    arrow = require("pyarrow", "data", "reading .zst files")
    compressed = stack.enter_context(path.open("rb"))
    stream: Any = stack.enter_context(arrow.CompressedInputStream(arrow.PythonFile(compressed, "r"), "zstd"))
    return io.BufferedReader(stream)


def _parse(line: bytes, place: str) -> Row:
    try:
        text = line.decode("utf-8").rstrip()  # JSON errors at a line's end would else name the next line
    except UnicodeDecodeError as error:
        raise DataFileError(f"{place}: not UTF-8 at byte {error.start} of the line{_encoding_hint(line)}") from None
    try:
        value = strict_json(text)
    except json.JSONDecodeError as error:
        raise DataFileError(
            f"{place}: not JSON: {error.msg} at column {error.colno}{_encoding_hint(line) or _json_hint(text)}"
        ) from None
    except ValueError as error:
        raise DataFileError(f"{place}: {error}") from None
    if not isinstance(value, dict):
        hint = ". Is the file one JSON array? JSON Lines has one object per line" if isinstance(value, list) else ""
        raise DataFileError(f"{place}: a row must be a JSON object, not a {type(value).__name__}{hint}")
    row = Row(value)
    row.place = place
    return row


def _encoding_hint(line: bytes) -> str:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        return ". This looks like UTF-16; save the file as UTF-8"
    if line.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")):
        return (
            ". This looks like a compressed file; name it .gz or .zst if it is one of these, else decompress it first"
        )
    if line.startswith(b"PAR1"):
        return ". This looks like a Parquet file; name it .parquet"
    return ""


def _json_hint(text: str) -> str:
    if text.strip() in ("{", "["):
        return ". Is the JSON spread over several lines? JSON Lines has one object per line"
    return ""
