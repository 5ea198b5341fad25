"""One function reads every source: the same rows give the same datums, and errors name source and row."""

from __future__ import annotations

import gzip
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lossbook.datums import datums_from_file, read_rows
from lossbook.datums.errors import DataFileError, LabelError, MissingExtraError
from lossbook.datums.files.tables import BATCH_ROWS, read_hub_dataset, table_row

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()

TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0\ufdd1\ufdd2\ufdd3"), min_size=1, max_size=8
)
PLAIN = st.text("abc é🙂", min_size=1, max_size=8).map(lambda text: f"x{text}x")
ANSWERS = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": PLAIN}, optional={"weight": st.sampled_from([1, 0.5])}
)
MESSAGES = st.tuples(st.fixed_dictionaries({"role": st.just("user"), "content": TEXT}), ANSWERS).map(list)
TOKENS = st.lists(st.tuples(st.integers(0, 255), st.sampled_from([0.0, 1.0, -0.5])), min_size=2, max_size=6)
FORMATS = {
    "messages": st.fixed_dictionaries({"messages": MESSAGES}),
    "completion": st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT}),
    "labelled": st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT, "label": st.booleans()}),
    "pair": st.fixed_dictionaries({"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}),
    "tokens": TOKENS.map(lambda both: {"tokens": [t for t, _ in both], "weights": [w for _, w in both]}),
    "labels": TOKENS.map(
        lambda both: {"input_ids": [7, *(t for t, _ in both)], "labels": [-100, *(t for t, _ in both)]}
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


def lines(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def write_jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_bytes(lines(*rows))
    return path


def write_parquet(path: Path, *rows: dict[str, Any], **options: Any) -> Path:
    parquet.write_table(arrow.Table.from_pylist(list(rows)), path, **options)
    return path


def write_zst(path: Path, content: bytes) -> Path:
    with arrow.CompressedOutputStream(str(path), "zstd") as file:
        file.write(content)
    return path


def places(rows: Any) -> list[str]:
    return [row.place for row in rows]


ROWS = [{"prompt": f"p{i}", "completion": "c"} for i in range(3)]


class TestEverySourceGivesTheSame:
    """JSON Lines, compressed or not, Parquet and `datasets` hold the same rows."""

    @pytest.mark.parametrize("kind", FORMATS)
    @given(data=st.data())
    @settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
    def test_every_source_gives_the_same_datums(
        self, kind: str, folder: Path, tokenizer_with: Any, data: st.DataObject
    ) -> None:
        rows = data.draw(st.lists(FORMATS[kind], min_size=1, max_size=4))
        tokenizer = tokenizer_with("marked")
        plain, report = datums_from_file(write_jsonl(folder / "rows.jsonl", *rows), tokenizer)
        (folder / "rows.jsonl.gz").write_bytes(gzip.compress(lines(*rows)))
        others = [
            folder / "rows.jsonl.gz",
            write_zst(folder / "rows.jsonl.zst", lines(*rows)),
            write_parquet(folder / "rows.parquet", *rows),
            datasets.Dataset.from_list(rows),
            datasets.Dataset.from_list(rows).to_iterable_dataset(),
        ]
        for other in others:
            datums, other_report = datums_from_file(other, tokenizer)
            assert datums == plain
            assert (other_report.rows, other_report.labels_kept) == (report.rows, report.labels_kept)

    def test_fields_that_only_other_rows_have_are_left_out_but_not_columns(self) -> None:
        row = table_row({"a": None, "b": [{"c": None, "d": [None, {"e": None}]}], "f": {"g": None}}, "here")
        assert row == {"a": None, "b": [{"d": [None, {}]}], "f": {}}
        assert row.place == "here"
        numbers = [1.0, None]
        assert table_row({"a": numbers}, "")["a"] is numbers, "long lists of numbers are not gone through"

    def test_a_data_set_may_have_another_output_format(self) -> None:
        made = datasets.Dataset.from_list([{"tokens": [1, 2]}]).with_format("torch")
        assert list(read_rows(made)) == [{"tokens": [1, 2]}]


class TestPlaces:
    """Each row has its place; counts start at 1."""

    def test_each_kind_of_source_names_its_rows(self, tmp_path: Path) -> None:
        made = datasets.Dataset.from_list(ROWS[:2])
        made.save_to_disk(str(tmp_path / "saved"))
        datasets.DatasetDict({"train": made, "test": made}).save_to_disk(str(tmp_path / "splits"))
        (tmp_path / "a.ndjson.gz").write_bytes(gzip.compress(b"\n" + lines(*ROWS[:2])))
        assert places(read_rows(tmp_path / "a.ndjson.gz")) == ["a.ndjson.gz, line 2", "a.ndjson.gz, line 3"]
        assert places(read_rows(write_zst(tmp_path / "a.jsonl.zst", lines(ROWS[0])))) == ["a.jsonl.zst, line 1"]
        assert places(read_rows(write_parquet(tmp_path / "a.parquet", *ROWS[:2]))) == [
            f"a.parquet, row {i}" for i in (1, 2)
        ]
        assert places(read_rows(made)) == ["dataset, row 1", "dataset, row 2"]
        assert places(read_rows(tmp_path / "saved")) == ["saved, row 1", "saved, row 2"]
        assert places(read_rows(f"datasets:{tmp_path}/saved")) == ["saved, row 1", "saved, row 2"]
        assert places(read_rows(f"datasets:{tmp_path}/splits:test")) == ["splits:test, row 1", "splits:test, row 2"]

    def test_an_error_names_the_row(self, tmp_path: Path, tokenizer_with: Any) -> None:
        path = write_parquet(tmp_path / "kto.parquet", {**ROWS[0], "label": True}, {**ROWS[1], "label": None})
        with pytest.raises(LabelError, match=r"^kto.parquet, row 2: 'label' is None"):
            datums_from_file(path, tokenizer_with("marked"))

    def test_several_files_follow_one_another(self, tmp_path: Path) -> None:
        for name in ("b", "a"):
            write_jsonl(tmp_path / f"{name}.jsonl", *ROWS[:2])
        expected = ["a.jsonl, line 1", "a.jsonl, line 2", "b.jsonl, line 1", "b.jsonl, line 2"]
        assert places(read_rows(f"{tmp_path}/*.jsonl")) == expected
        assert places(read_rows(tmp_path / "*.jsonl")) == expected
        both = [tmp_path / "b.jsonl", str(write_parquet(tmp_path / "c.parquet", ROWS[0]))]
        assert places(read_rows(both)) == ["b.jsonl, line 1", "b.jsonl, line 2", "c.parquet, row 1"]

    def test_a_name_that_exists_is_not_a_pattern(self, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "a.jsonl", *ROWS)
        assert places(read_rows(write_jsonl(tmp_path / "[a].jsonl", ROWS[0]))) == ["[a].jsonl, line 1"]


class TestStreaming:
    """Only the requested rows are read, one line or batch at a time."""

    def test_a_limit_ends_the_reading(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_bytes(lines(*ROWS[:2]) + b"no JSON\n")
        assert [row["prompt"] for row in read_rows(path, limit=2)] == ["p0", "p1"]
        with pytest.raises(DataFileError, match=r"a\.jsonl, line 3: not JSON"):
            list(read_rows(path, limit=3))
        assert len(list(read_rows([write_jsonl(tmp_path / "b.jsonl", ROWS[0])] * 9, limit=4))) == 4

    @pytest.mark.parametrize("limit", [0, -1, True, 2.5, "3"])
    def test_a_limit_must_be_a_positive_integer(self, limit: Any) -> None:
        with pytest.raises(DataFileError, match="limit must be a number of rows, at least 1, not"):
            read_rows("a.jsonl", limit=limit)

    def test_the_first_rows_of_an_endless_data_set_can_be_read(self) -> None:
        drawn = []

        def endless() -> Any:
            while True:
                drawn.append(1)
                yield {"prompt": "a", "completion": "b"}

        rows = read_rows(datasets.IterableDataset.from_generator(endless), limit=2)
        assert len(list(rows)) == 2
        assert len(drawn) < 50

    def test_memory_holds_one_batch_of_a_parquet_file(self, tmp_path: Path) -> None:
        many = [{"prompt": f"{i:01000}", "completion": "c"} for i in range(20_000)]
        path = write_parquet(tmp_path / "a.parquet", *many, use_dictionary=False)
        size = sum(len(row["prompt"]) for row in many)
        del many
        before, most, count = arrow.total_allocated_bytes(), 0, 0
        for row in read_rows(path):
            count += 1
            most = max(most, arrow.total_allocated_bytes() - before)
            assert row.place == f"a.parquet, row {count}"
        assert count == 20_000
        assert 64 * 1000 <= most < size / 4, "one row group of 20 MB, of which pages are unpacked one by one"

    def test_a_table_becomes_python_objects_batch_by_batch(self, tmp_path: Path) -> None:
        size = 10_000  # bytes of each row's text
        rows = read_rows(
            write_parquet(tmp_path / "a.parquet", *({"a": f"{i:0{size}}"} for i in range(20 * BATCH_ROWS)))
        )
        tracemalloc.start()
        try:
            next(rows)
            assert BATCH_ROWS * size <= tracemalloc.get_traced_memory()[1] < 2 * BATCH_ROWS * size
        finally:
            tracemalloc.stop()


class TestWhatCannotBeRead:
    """An error about a bad source names the source, the problem and the fix."""

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            (
                "a.csv",
                b"a,b\n",
                r"a\.csv: the ending of its name is not known. Known are \.jsonl, .*\. Convert it .*from_csv",
            ),
            ("a.txt", b"hi", "A row needs keys, such as 'prompt'"),
            ("a.arrow", b"x", "Convert it to Parquet"),
            ("a.zip", b"PK", "Decompress it first"),
            (
                "a",
                b"{}",
                r"Known are \.jsonl, \.ndjson, \.json, \.parquet, \.pq, and \.gz or \.zst after an ending of JSON Lines$",
            ),
            ("a.parquet.gz", b"x", "the ending of its name is not known"),
            ("a.parquet", b"PAR1 and no more", r"a\.parquet: cannot be read as Parquet: Parquet"),
            ("a.parquet", b"", "cannot be read as Parquet: Parquet file size is 0 bytes"),
            (
                "a.jsonl",
                b"PAR1\x15\x04",
                r"line 1: not (UTF-8|JSON).*This looks like a Parquet file; name it \.parquet",
            ),
            ("a.jsonl", gzip.compress(b"{}", mtime=0), r"This looks like a compressed file; name it \.gz or \.zst"),
            ("a.jsonl.gz", b'{"a": 1}\n', "cannot be read: Not a gzipped file"),
            (
                "a.jsonl.gz",
                gzip.compress(lines(*ROWS) * 99, mtime=0)[:-30],
                r"a\.jsonl\.gz: cannot be read.*end-of-stream marker",
            ),
            ("a.jsonl.gz", gzip.compress(b"\n", mtime=0), "holds no rows"),
            ("a.jsonl.zst", b'{"a": 1}\n', "cannot be read: ZSTD decompress failed"),
            ("a.json", b'[\n{"a": 1}]', "JSON Lines has one object per line"),
            ("a.jsonl", b"", "holds no rows"),
        ],
    )
    def test_a_bad_file_is_refused(self, name: str, content: bytes, message: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataFileError, match=message):
            list(read_rows(tmp_path / name))

    def test_a_truncated_zst_file_is_refused(self, tmp_path: Path) -> None:
        path = write_zst(tmp_path / "a.jsonl.zst", lines(*({"a": f"{i * 7919 % 10007}"} for i in range(9999))))
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataFileError, match=r"a\.jsonl\.zst: cannot be read.*Truncated compressed stream"):
            list(read_rows(path))

    def test_a_damaged_parquet_file_is_refused(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "a.parquet", *({"a": f"{i * 7919 % 10007:020}"} for i in range(20_000)))
        content = bytearray(path.read_bytes())
        content[2000:6000] = b"\xff" * 4000
        path.write_bytes(bytes(content))
        with pytest.raises(DataFileError, match=r"a\.parquet: cannot be read as Parquet"):
            list(read_rows(path))

    def test_a_table_without_rows_is_refused(self, tmp_path: Path) -> None:
        parquet.write_table(arrow.table({"a": arrow.array([], arrow.int64())}), tmp_path / "a.parquet")
        with pytest.raises(DataFileError, match=r"a\.parquet: holds no rows"):
            list(read_rows(tmp_path / "a.parquet"))
        with pytest.raises(DataFileError, match="dataset: holds no rows"):
            list(read_rows(datasets.Dataset.from_dict({"a": []})))

    def test_a_missing_source_is_refused_with_a_hint(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_jsonl(tmp_path / "train.jsonl", *ROWS)
        with pytest.raises(
            DataFileError, match=r"trian.jsonl: .* No such file or directory. Did you mean 'train.jsonl'\?"
        ):
            list(read_rows(tmp_path / "trian.jsonl"))
        with pytest.raises(DataFileError, match=r"\*\.parquet: no file matches"):
            list(read_rows(tmp_path / "*.parquet"))
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataFileError, match="For a data set on the hub write datasets:somebody/chats"):
            list(read_rows("somebody/chats"))
        with pytest.raises(DataFileError, match=r"a folder that `datasets` did not save. For the files in it write"):
            list(read_rows(tmp_path))
        with pytest.raises(DataFileError, match="a folder that `datasets` did not save"):
            list(read_rows(f"datasets:{tmp_path}"))

    def test_a_wrong_or_missing_split_is_refused_with_the_splits(self, tmp_path: Path) -> None:
        made = datasets.Dataset.from_list(ROWS)
        both = datasets.DatasetDict({"train": made, "test": made})
        both.save_to_disk(str(tmp_path / "both"))
        datasets.DatasetDict({"train": made}).save_to_disk(str(tmp_path / "one"))
        made.save_to_disk(str(tmp_path / "plain"))
        assert places(read_rows(tmp_path / "one", limit=1)) == ["one:train, row 1"]
        with pytest.raises(DataFileError, match=r"both needs a split; there are train, test: datasets:.*both:train"):
            list(read_rows(tmp_path / "both"))
        with pytest.raises(DataFileError, match=r"has no split 'tets'; there are train, test: .* Did you mean 'test'"):
            list(read_rows(f"datasets:{tmp_path}/both:tets"))
        with pytest.raises(DataFileError, match="plain has no splits, so there is no 'train'; leave it out"):
            list(read_rows(f"datasets:{tmp_path}/plain:train"))
        with pytest.raises(DataFileError, match=r"a saved folder has no configurations; write datasets:.*both:train"):
            list(read_rows(f"datasets:{tmp_path}/both:main:train"))
        with pytest.raises(DataFileError, match="dataset has the splits train, test; choose one of them"):
            list(read_rows(both))

    def test_a_damaged_saved_folder_is_refused(self, tmp_path: Path) -> None:
        datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
        (tmp_path / "saved" / "dataset_info.json").write_text("{", encoding="utf-8")
        with pytest.raises(DataFileError, match="saved: cannot be read as a saved data set"):
            list(read_rows(tmp_path / "saved"))

    @pytest.mark.parametrize("source", ["datasets:", "datasets:a:", "datasets:a:b:c:d", "datasets:a:train[:10]"])
    def test_a_malformed_name_of_a_data_set_is_refused(self, source: str) -> None:
        with pytest.raises(
            DataFileError, match=r"is not datasets:NAME, datasets:NAME:SPLIT or datasets:NAME:CONFIG:SPLIT"
        ):
            list(read_rows(source))

    @pytest.mark.parametrize("source", [3, None, [], [{"a": 1}]])
    def test_an_object_that_is_not_a_source_is_refused(self, source: Any) -> None:
        with pytest.raises(
            DataFileError, match="a data source is a file's name, a list of names or a `datasets` object, not"
        ):
            list(read_rows(source))

    def test_a_failure_while_a_data_set_is_read_names_the_row_before(self) -> None:
        def broken() -> Any:
            yield {"a": 1}
            raise ConnectionError("the line went dead\nand more")

        rows = read_rows(datasets.IterableDataset.from_generator(broken))
        assert next(rows) == {"a": 1}
        with pytest.raises(DataFileError, match=r"^dataset, after row 1: cannot be read: the line went dead and more$"):
            next(rows)


class TestHub:
    """`datasets:NAME` with a replacement for the hub: the requests, and the treatment of answers."""

    def test_name_configuration_and_split_reach_the_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []

        def load(name: str, config: str | None, streaming: bool) -> Any:
            asked.append((name, config, streaming))
            return {"train": datasets.Dataset.from_list(ROWS).to_iterable_dataset(), "test": None}

        monkeypatch.setattr(datasets, "load_dataset", load)
        assert places(read_rows("datasets:me/chats:train", limit=1)) == ["me/chats:train, row 1"]
        assert places(read_rows("datasets:me/chats:main:train", limit=1)) == ["me/chats:main:train, row 1"]
        assert asked == [("me/chats", None, True), ("me/chats", "main", True)]
        with pytest.raises(
            DataFileError, match="me/chats needs a split; there are train, test: datasets:me/chats:train"
        ):
            list(read_rows("datasets:me/chats"))

    def test_the_hubs_refusal_is_passed_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load(*_: Any, **__: Any) -> Any:
            raise ValueError("Config name is missing.\n\nPlease pick one: ['a', 'b']" + "x" * 999)

        monkeypatch.setattr(datasets, "load_dataset", load)
        with pytest.raises(
            DataFileError,
            match=r"datasets:me/chats: cannot be read from the hub: Config name is missing. Please pick one: \['a', 'b'\]x+…$",
        ):
            list(read_hub_dataset("me/chats"))


@pytest.mark.parametrize(
    ("source", "missing", "purpose"),
    [
        ("a.parquet", "pyarrow", "reading Parquet files needs pyarrow"),
        ("a.jsonl.zst", "pyarrow", r"reading \.zst files needs pyarrow"),
        ("datasets:me/chats:train", "datasets", "reading a data set from the hub needs datasets"),
    ],
)
def test_an_error_about_a_missing_package_gives_the_pip_command(
    source: str, missing: str, purpose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ":" not in source:
        (tmp_path / source).write_bytes(b"")
    monkeypatch.setitem(sys.modules, missing, None)  # an import of it now raises ModuleNotFoundError
    with pytest.raises(MissingExtraError, match=rf"{purpose}: pip install 'lossbook\[data\]'"):
        list(read_rows(source if ":" in source else tmp_path / source))


def test_plain_json_lines_need_no_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("pyarrow", "datasets"):
        monkeypatch.setitem(sys.modules, package, None)  # an import of it now raises ModuleNotFoundError
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(*ROWS)))
    assert len(list(read_rows([write_jsonl(tmp_path / "a.jsonl", *ROWS), tmp_path / "a.jsonl.gz"]))) == 6
