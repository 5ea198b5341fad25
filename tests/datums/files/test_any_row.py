"""Any row becomes datums or a LossbookError that names the row, never another exception."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossbook.datums import check_datum, datums_from_file, datums_from_row
from lossbook.datums.builders.notes import watch_notes
from lossbook.datums.chat.messages import FLAGS
from lossbook.datums.errors import (
    DataFileError,
    DtypeError,
    EmptyLossError,
    LossbookError,
    MessageError,
    NonFiniteLossInput,
    ShapeError,
    TokenRangeError,
)
from lossbook.datums.files.formats import FORMATS
from lossbook.datums.files.keys import READ, REFUSED, REFUSED_WITH_TEXT

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
)
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "robot"])
MESSAGE = st.dictionaries(
    st.sampled_from(["role", "content", "weight", "tool_calls", "name"]), SCALARS | ROLES, max_size=4
)
SOUND = st.fixed_dictionaries({"role": ROLES, "content": TEXT})
ANYTHING = st.recursive(
    SCALARS | MESSAGE | SOUND,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NUMBERS = st.lists(st.integers(0, 300) | st.floats(-2, 2) | st.integers(-200, -1), max_size=4)
VALUES = ANYTHING | st.lists(SOUND, max_size=4) | NUMBERS | TEXT
KNOWN = sorted({key for keys in READ.values() for key in keys} | {*REFUSED, *REFUSED_WITH_TEXT, *FLAGS, "weight"})
KEYS = [*KNOWN, "id"]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("template", ["marked", "unmarked"])
@given(data=st.data())
def test_any_row_is_built_or_raises_a_lossbook_error(
    kind: str, template: str, tokenizer_with: Any, data: st.DataObject
) -> None:
    row = {key: data.draw(VALUES, label=key) for key in FORMATS[kind]}
    row.update(data.draw(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=2)))
    try:
        datums = datums_from_row(row, tokenizer_with(template))
    except LossbookError:
        return
    assert datums
    for datum in datums:
        check_datum(datum)


SOUND_ROWS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]},
    "prompt and completion": {"prompt": "a", "completion": "b"},
    "labelled completion": {"prompt": "a", "completion": "b", "label": 1},
    "preference pair": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "tokens and weights": {"tokens": [1, 2, 3], "weights": [0, 1, 1]},
    "input ids and labels": {"input_ids": [1, 2, 3], "labels": [1, 2, 3]},
}


@pytest.mark.parametrize("kind", SOUND_ROWS)
@given(st.sets(st.sampled_from(KEYS), min_size=1, max_size=4))
def test_any_known_key_is_read_or_noted_or_refused_by_name(kind: str, tokenizer_with: Any, keys: set[str]) -> None:
    row = SOUND_ROWS[kind]
    more: dict[str, Any] = {key: "something" for key in keys - row.keys()}
    with watch_notes() as notes:
        try:
            datums_from_row({**more, **row}, tokenizer_with("marked"))
            problem = ""
        except LossbookError as error:
            problem = str(error)
    read = {key for key in more if key in READ.get(kind, ())}
    if problem:
        assert any(key in problem for key in more), problem
    else:
        assert not read or kind not in ("tokens and weights", "input ids and labels"), "what is no list is refused"
        assert {f"{key!r}" for key in more if key not in read} <= {*notes.unread, *notes.heeded}


def write_jsonl(path: Path, row: dict[str, Any]) -> Path:
    path.write_text(json.dumps(row), encoding="utf-8")
    return path


def write_parquet(path: Path, row: dict[str, Any]) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist([row]), path)
    return path


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        pytest.param({"tokens": [1, 2.7], "weights": [0, 1]}, DtypeError, "floats such as", id="D3: float tokens"),
        pytest.param({"tokens": [1, -2], "weights": [0, 1]}, TokenRangeError, "-2", id="D4: a negative token"),
        pytest.param({"tokens": [[1], [2]], "weights": [0, 1]}, ShapeError, "one flat list", id="D8: nested tokens"),
        pytest.param({"tokens": [[1, 2], [3]], "weights": [0, 1]}, ShapeError, "ragged", id="D8: ragged tokens"),
        pytest.param({"tokens": [1], "weights": [1]}, EmptyLossError, "nothing to predict", id="D11: one token"),
        pytest.param({"tokens": [], "weights": []}, EmptyLossError, "0 token", id="D11: no token"),
        pytest.param(
            {"messages": [USER, {"role": "bot", "content": "x"}]}, MessageError, "unknown role 'bot'", id="D19: a role"
        ),
        pytest.param({"messages": [{"role": "user"}, USER]}, MessageError, "no 'content'", id="D19: no content"),
        pytest.param(
            {"messages": [{**USER, "tool_calls": [{"name": "f"}]}]}, MessageError, "only an assistant", id="D19: calls"
        ),
        pytest.param({"messages": []}, MessageError, "messages is empty", id="D19: no messages"),
        pytest.param({"prompt": "a", "completion": 3}, DataFileError, "str and int", id="D19: a number for a text"),
    ],
)
@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_errors_of_rows_name_file_and_row(
    write: Any, row: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path, tokenizer_with: Any
) -> None:
    name, unit = ("rows.jsonl", "line") if write is write_jsonl else ("rows.parquet", "row")
    with pytest.raises(kind, match=rf"^{name}, {unit} 1: .*{message}"):
        datums_from_file(write(tmp_path / name, row), tokenizer_with("marked"))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_d5_nan_and_infinity_in_a_table_are_refused(number: float, tmp_path: Path, tokenizer_with: Any) -> None:
    path = write_parquet(tmp_path / "rows.parquet", {"tokens": [1, 2, 3], "weights": [0.0, number, 1.0]})
    with pytest.raises(NonFiniteLossInput, match=r"^rows.parquet, row 1: .*weights is (nan|inf) at position 0"):
        datums_from_file(path, tokenizer_with("marked"))


def test_d4_an_id_beyond_64_bits_is_refused(tmp_path: Path, tokenizer_with: Any) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", {"tokens": [1, 2**70], "weights": [0, 1]})
    with pytest.raises(TokenRangeError, match=r"^rows.jsonl, line 1: 'tokens': .*beyond 64 bits"):
        datums_from_file(path, tokenizer_with("marked"))
