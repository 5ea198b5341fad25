"""D18: errors about a JSON Lines file name file and line, and memory holds one line at a time."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossbook.datums import read_jsonl
from lossbook.datums.checks.json_text import unique
from lossbook.datums.errors import DataFileError
from lossbook.datums.files.jsonl import MAX_BLANK_BYTES

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def write(folder: Path, content: bytes) -> Path:
    path = folder / "data.jsonl"
    path.write_bytes(content)
    return path


@given(
    rows=st.lists(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), JSON), min_size=1),
    ascii_only=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
)
def test_rows_survive_being_written_and_read(
    folder: Path, rows: list[dict[str, Any]], ascii_only: bool, end: str, bom: bool
) -> None:
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    path = write(folder, (b"\xef\xbb\xbf" if bom else b"") + end.join(lines).encode("utf-8"))
    assert list(read_jsonl(path)) == rows


def test_blank_lines_are_skipped_and_counted(folder: Path) -> None:
    path = write(folder, b'\xef\xbb\xbf\r\n{"a": 1}\r\n   \r\n\r\n{"a": 2}\r\n')
    assert [(row["a"], row.place) for row in read_jsonl(path)] == [(1, "data.jsonl, line 2"), (2, "data.jsonl, line 5")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param(b'{"a": NaN}', "NaN is not JSON; write null", id="D18: NaN"),
        pytest.param(b'{"a": -Infinity}', "-Infinity is not JSON", id="D18: infinity"),
        pytest.param(
            b'{"a": 1e400}', "the number 1e400 is beyond the range of a float", id="D18: overflow to infinity"
        ),
        pytest.param(b'{"a": "\xff"}', "not UTF-8 at byte 7 of the line", id="D18: invalid UTF-8"),
        pytest.param(b"\xff\xfe{\x00}\x00", "This looks like UTF-16", id="D18: UTF-16"),
        pytest.param(b"\x1f\x8b\x08\x00", "This looks like a compressed file", id="D18: gzip"),
        pytest.param(b'{"a": 1, "a": 2}', "the key 'a' appears more than once in one object", id="D18: duplicate keys"),
        pytest.param(b'{"m": [{"b": 1, "b": 1}]}', "the key 'b' appears more than once", id="D18: duplicates within"),
        pytest.param(b'{"a": 1', "not JSON: Expecting ',' delimiter at column 8", id="D18: cut off"),
        pytest.param(b"{", "not JSON: .*JSON Lines has one object per line", id="D18: JSON over several lines"),
        pytest.param(b"[", "not JSON: .*JSON Lines has one object per line", id="D18: an array over several lines"),
        pytest.param(
            b'[{"a": 1}]', "must be a JSON object, not a list. Is the file one JSON array", id="D18: an array"
        ),
        pytest.param(b"3", "a row must be a JSON object, not a int", id="D18: a number"),
        pytest.param(b'{"a": "\\ud800"}', "an unpaired surrogate", id="D18: half a character"),
        pytest.param(b'{"a":' + b"[" * 100_000, "nested too deeply", id="D18: nested too deeply"),
        pytest.param(
            b'{"a": ' + b"9" * 5000 + b"}", "beyond the range of a float", id="D18: an integer of 5000 digits"
        ),
        pytest.param(b'{"a": 1' + b"0" * 400 + b"}", "the number 1000.*000 is beyond the range", id="10**400"),
        pytest.param(b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "more than 100 inside one another", id="101 deep"),
        pytest.param(
            b"{" + b", ".join(b'"%d": 0' % i for i in range(10_001)) + b"}", "an object of 10001 keys", id="many keys"
        ),
        pytest.param(
            b'{"' + b"k" * 9000 + b'": 1, "' + b"k" * 9000 + b'": 2}', "the key 'k+.{3}k+' appears", id="a long key"
        ),
        pytest.param(b'{"a": "' + b"x" * 3000 + b'"}', "longer than 2000 bytes", id="D18: a long line"),
    ],
)
def test_an_error_names_the_bad_line(folder: Path, line: bytes, message: str) -> None:
    limit = 2000 if b"xxx" in line else 1_000_000
    rows = read_jsonl(write(folder, b'{"good": 1}\n\n' + line + b"\n"), max_line_bytes=limit)
    assert next(rows) == {"good": 1}
    with pytest.raises(DataFileError, match=f"^data.jsonl, line 3: .*{message}"):
        next(rows)


def test_a_paired_surrogate_is_one_character(folder: Path) -> None:
    assert list(read_jsonl(write(folder, b'{"a": "\\ud83d\\ude00"}'))) == [{"a": "\U0001f600"}]


class CountedKey(str):
    """A text that counts how often it is compared or hashed."""

    calls = 0

    def __eq__(self, other: object) -> bool:
        CountedKey.calls += 1
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        CountedKey.calls += 1
        return str.__hash__(self)


@pytest.mark.parametrize("twice", [0, 20_000, 39_998], ids=["the first key", "one in the middle", "the last"])
def test_a_key_twice_among_many_is_named_after_a_few_operations_per_key(twice: int) -> None:
    names = [f"key {number}" for number in range(39_999)]
    pairs: list[tuple[str, Any]] = [(CountedKey(name), 0) for name in [*names, names[twice]]]
    CountedKey.calls = 0
    with pytest.raises(ValueError, match=f"the key 'key {twice}' appears more than once"):
        unique(pairs)
    assert CountedKey.calls < 10 * len(pairs)


def test_100_lists_inside_one_another_are_read(folder: Path) -> None:
    line = b'{"a":' + b"[" * 99 + b"]" * 99 + b', "b": ' + b"[[], {}, " * 60 + b"0" + b"]" * 60 + b"}"
    assert list(read_jsonl(write(folder, line))) == [json.loads(line)]


@pytest.mark.parametrize(
    "line", [b"\n", b"  \t \r\n", b" " * 9000 + b"\n"], ids=["empty", "a few spaces", "many spaces"]
)
def test_blank_lines_of_more_than_a_mebibyte_more_than_the_rows_are_refused(folder: Path, line: bytes) -> None:
    row = b'{"a": 1}\n'
    enough = (MAX_BLANK_BYTES + len(row)) // len(line)
    path = folder / "blank.jsonl.gz"
    path.write_bytes(gzip.compress(row + line * enough + row, 1))
    assert len(list(read_jsonl(path))) == 2
    path.write_bytes(gzip.compress(row + line * (enough + 1) + row, 1))
    with pytest.raises(
        DataFileError, match=f"blank.jsonl.gz, line {enough + 2}: .* bytes of blank lines so far, and 9 of rows"
    ):
        list(read_jsonl(path))


def test_a_file_with_a_blank_line_after_each_row_is_read_whatever_its_length(folder: Path) -> None:
    path = write(folder, b'{"a":1}\n       \n' * (MAX_BLANK_BYTES // 8 + 2))
    assert sum(row["a"] for row in read_jsonl(path)) == MAX_BLANK_BYTES // 8 + 2


def test_a_line_of_exactly_the_limit_is_read(folder: Path) -> None:
    line = b'{"a": 1}\n'
    assert list(read_jsonl(write(folder, line), max_line_bytes=len(line))) == [{"a": 1}]


def test_d18_a_huge_line_is_refused_before_it_is_in_memory(folder: Path) -> None:
    path = folder / "huge.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": "')
        file.truncate(200_000_000)  # sparse: zeros that take no room on the disk
    tracemalloc.start()
    try:
        with pytest.raises(DataFileError, match=r"huge.jsonl, line 1: longer than 1000000 bytes \(max_line_bytes\)"):
            list(read_jsonl(path, max_line_bytes=1_000_000))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_file_without_rows_or_no_file_at_all_is_refused(folder: Path) -> None:
    with pytest.raises(DataFileError, match="holds no rows"):
        list(read_jsonl(write(folder, b"\xef\xbb\xbf\n \n")))
    with pytest.raises(DataFileError, match=r"missing.jsonl: cannot be read: No such file"):
        list(read_jsonl(folder / "missing.jsonl"))
    with pytest.raises(DataFileError, match="cannot be read: Is a directory"):
        list(read_jsonl(folder))
