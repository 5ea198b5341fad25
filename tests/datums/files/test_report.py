"""The report counts every row and every lost label token."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossbook.datums import (
    DataReport,
    Datum,
    ModelInput,
    Row,
    Trajectory,
    build_datums,
    datum_from_row,
    datum_from_tokens_weights,
    datums_from_pairs,
    datums_from_trajectories,
)
from lossbook.datums.errors import DtypeError, EmptyLossError, LengthMismatchError, TruncationError
from lossbook.datums.files.report import survey

ROWS = st.lists(st.lists(st.sampled_from([0.0, 1.0, 0.5, -1.0]), min_size=2, max_size=20), min_size=1, max_size=8)
POLICIES = st.sampled_from(["drop", "right", "left", "middle"])


def labels_of(weights: list[float]) -> int:
    """Label tokens of a row, counted without the code under test: the first token is never a target."""
    return len([weight for weight in weights[1:] if weight != 0])


def make(max_length: int | None, truncation: Any) -> Any:
    return lambda weights: datum_from_tokens_weights(
        list(range(len(weights))), weights, max_length, truncation=truncation
    )


@given(ROWS, st.integers(2, 20), POLICIES)
def test_kept_and_lost_label_tokens_add_up_to_all(rows: list[list[float]], max_length: int, policy: str) -> None:
    try:
        datums, report = build_datums(rows, make(max_length, policy), on_error="drop")
    except EmptyLossError:
        return
    assert report.labels_kept + report.labels_lost == sum(map(labels_of, rows))
    assert report.labels_kept == sum(w != 0 for d in datums for w in d.loss_fn_inputs["weights"].data)
    assert report.rows == len(rows) == report.kept + report.dropped
    assert report.datums == report.kept == len(datums)
    assert report.tokens == sum(datum.model_input.length + 1 for datum in datums)
    too_long = sum(len(weights) > max_length for weights in rows)
    assert report.truncated + report.dropped == too_long


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=6),
    st.integers(3, 8),
    POLICIES,
    st.booleans(),
)
def test_label_tokens_of_pairs_are_all_counted(
    lengths: list[tuple[int, int, int]], max_length: int, policy: Any, one_by_one: bool
) -> None:
    def pairs(rows: list[tuple[int, int, int]]) -> list[Datum]:
        columns = [[[7] * row[i] for row in rows] for i in range(3)]
        return datums_from_pairs(*columns, max_length=max_length, truncation=policy)

    try:
        if one_by_one:
            datums, report = build_datums(lengths, lambda row: pairs([row]), on_error="drop")
        else:
            datums, report = build_datums([lengths], pairs)
    except (EmptyLossError, TruncationError):
        return
    assert len(datums) % 2 == 0
    assert report.labels_kept + report.labels_lost == sum(chosen + rejected for _, chosen, rejected in lengths)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(3, 8), POLICIES)
def test_label_tokens_of_trajectories_are_all_counted(lengths: list[int], max_length: int, policy: Any) -> None:
    def trajectories(counts: list[int]) -> list[Datum]:
        made = [
            Trajectory(prompt_tokens=[1], response_tokens=[2] * n, sampling_logprobs=[0.0] * n, advantages=1.0)
            for n in counts
        ]
        return datums_from_trajectories(made, max_length=max_length, truncation=policy)

    try:
        _, report = build_datums([lengths], trajectories)
    except EmptyLossError:
        return
    assert report.labels_kept + report.labels_lost == sum(lengths)


@given(ROWS, ROWS, st.integers(2, 12), POLICIES)
def test_the_report_of_the_whole_is_that_of_the_parts_merged(
    first: list[list[float]], second: list[list[float]], max_length: int, policy: Any
) -> None:
    try:
        whole = build_datums(first + second, make(max_length, policy), on_error="drop")[1]
        left = build_datums(first, make(max_length, policy), on_error="drop")[1]
        later = [Numbered(weights, len(first) + index) for index, weights in enumerate(second)]
        right = build_datums(later, lambda row: make(max_length, policy)(list(row)), on_error="drop")[1]
    except EmptyLossError:
        return
    assert left.merge(right) == whole
    assert DataReport().merge(whole) == whole


class Numbered(list[float]):
    """Weights of a row, with its place in the whole."""

    def __init__(self, weights: list[float], index: int) -> None:
        super().__init__(weights)
        self.place = f"row {index}"


def test_merging_does_not_change_its_parts() -> None:
    _, report = build_datums([[1.0] * 5], make(3, "right"))
    before = report.to_json()
    merged = report.merge(report)
    assert report.to_json() == before
    assert merged.problems["truncated"].count == 2


def test_d12_rows_too_long_are_counted_with_examples() -> None:
    rows = [[0.0, 1.0]] + [[0.0] + [1.0] * 9] * 5
    datums, report = build_datums(rows, make(4, "drop"))
    assert len(datums) == report.kept == 1
    assert report.dropped == 5
    assert report.labels_lost == 45
    problem = report.problems["DatumDropped"]
    assert problem.count == 5
    assert [example.split(":")[0] for example in problem.examples] == ["row 1", "row 2", "row 3"]


def test_labels_cut_from_a_row_before_it_failed_are_counted_too() -> None:
    def two(row: int) -> list[Datum]:
        whole = [0.0] + [1.0] * 4
        return [make(4, "right")(whole), make(4, "right")([0.0] * 4 + [1.0, 1.0])] if row else [make(9, "right")(whole)]

    _, report = build_datums([0, 1], two, on_error="drop")
    assert report.dropped == 1
    assert report.labels_lost == 1 + 2


def test_an_error_names_the_row_and_keeps_its_class() -> None:
    rows = [[0.0, 1.0], [1.0]]
    with pytest.raises(EmptyLossError, match="row 1: 1 token"):
        build_datums(rows, make(None, "error"))
    row = Row(weights=[1.0] * 9)
    row.place = "train.jsonl, line 7"
    with pytest.raises(TruncationError, match=r"train\.jsonl, line 7: 9 tokens are longer than max_length=4"):
        build_datums([row], lambda r: make(4, "error")(r["weights"]))


def test_mistakes_in_make_are_never_dropped() -> None:
    with pytest.raises(KeyError):
        build_datums([{}], lambda row: row["weights"], on_error="drop")
    with pytest.raises(ValueError, match="on_error must be 'error' or 'drop', not 'skip'"):
        build_datums([{}], make(None, "error"), on_error="skip")  # type: ignore[arg-type]


def test_invalid_datums_from_make_are_refused() -> None:
    with pytest.raises(DtypeError, match="row 0: expected a Datum"):
        build_datums([1], lambda row: row)
    with pytest.raises(LengthMismatchError, match="row 0: the datum: weights has 1 entry, model_input has 2 tokens"):
        build_datums([1], lambda row: Datum(ModelInput.from_ints([1, 2]), {"weights": [1.0]}))  # type: ignore[dict-item]
    with pytest.raises(EmptyLossError, match="row 0: the row gave no datum"):
        build_datums([1], lambda row: [])


@pytest.mark.parametrize("on_error", ["error", "drop"])
def test_an_error_about_no_kept_row_contains_the_report(on_error: Literal["error", "drop"]) -> None:
    with pytest.raises(EmptyLossError, match="there are no rows"):
        build_datums([], make(None, "error"), on_error=on_error)
    with pytest.raises(
        EmptyLossError, match=r"(?s)no row was kept:.*2: 0 kept .0 truncated., 2 dropped.*6 lost \(100.0%\)"
    ):
        build_datums([[1.0] * 4] * 2, make(3, "drop"), on_error=on_error)


def test_the_report_reads_as_text_and_as_json() -> None:
    rows = [[0.0, 1.0], [0.0, 1.0, 1.0, 1.0], [1.0]]
    _, report = build_datums(rows, make(3, "right"), on_error="drop")
    assert report.render().splitlines() == [
        "rows    3: 2 kept (1 truncated), 1 dropped",
        "tokens  5 in 2 datums; length min 2, median 2, 90% 3, 99% 3, max 3",
        "labels  3 kept (60.0% of the tokens), 1 lost (25.0%)",
        "longest row 1: 3; row 0: 2",
        "truncated  1: row 1",
        "EmptyLossError  1: row 2: 1 token(s) leave nothing to predict: at least 2 are needed",
    ]
    assert json.loads(report.to_json()) == {
        "rows": 3,
        "kept": 2,
        "truncated": 1,
        "dropped": 1,
        "datums": 2,
        "tokens": 5,
        "labels_kept": 3,
        "labels_lost": 1,
        "label_tokens_frac": 0.6,
        "label_tokens_lost_frac": 0.25,
        "length_quantiles": {"0": 2, "0.5": 2, "0.9": 3, "0.99": 3, "1": 3},
        "formats": {},
        "longest": [{"row": "row 1", "tokens": 3}, {"row": "row 0", "tokens": 2}],
        "repeated": {"count": 0, "examples": []},
        "in_held_out": {"count": 0, "examples": []},
        "heeded": {},
        "unread": {},
        "problems": {
            "truncated": {"count": 1, "examples": ["row 1"]},
            "EmptyLossError": {
                "count": 1,
                "examples": ["row 2: 1 token(s) leave nothing to predict: at least 2 are needed"],
            },
        },
    }


def test_the_report_has_formats_longest_rows_and_repetitions() -> None:
    rows = [
        {"tokens": [1, 2], "weights": [0, 1]},
        {"tokens": [1, 2, 3], "weights": [0, 1, 1]},
        {"tokens": [1, 2], "weights": [0, 0.5]},
        {"input_ids": [1, 2], "labels": [-100, 2]},
        {"tokens": [1, 2, 3], "weights": [1, 1, 1]},
        {"tokens": [1, 2, 3, 4], "weights": [0, 1, 1, 1]},
    ]
    _, report = build_datums(rows, lambda row: datum_from_row(row, None))
    assert report.formats == {"tokens and weights": 5, "input ids and labels": 1}
    assert report.longest == [(4, "row 5"), (3, "row 1"), (3, "row 4")]
    assert report.repeated().count == 2
    assert report.repeated().examples == ["row 3 repeats row 0", "row 4 repeats row 1"], (
        "the first weight has no effect"
    )
    assert report.render().splitlines()[3:] == [
        "formats tokens and weights 5, input ids and labels 1",
        "longest row 5: 4; row 1: 3; row 4: 3",
        "repeated  2: row 3 repeats row 0; row 4 repeats row 1",
    ]


def test_the_report_counts_what_rows_say_about_learning_and_what_nothing_reads() -> None:
    rows = [
        {"tokens": [1, 2, 3], "weights": [0, 1, 1], "loss_mask": [0, 0, 1], "id": 7},
        {"tokens": [1, 2, 3], "weights": [0, 1, 1], "weight": 0.5, "id": 8, "note": None},
        {"tokens": [1, 2, 4], "weights": [0, 1, 1], "weight": 0, "id": 9},
        {"input_ids": [1, 2, 5], "labels": [1, 2, 5], "trainable": False},
    ]
    _, report = build_datums(rows, lambda row: datum_from_row(row, None))
    assert (report.kept, report.dropped) == (2, 2)
    assert report.render().splitlines()[-5:] == [
        "heeded  'loss_mask'  1: row 0",
        "heeded  'weight'  2: row 1; row 2",
        "heeded  'trainable'  1: row 3",
        "not read  'id'  3: row 0; row 1; row 2",
        "RowLeftOut  2: row 2: the row says that nothing of it is learned: its weight is 0; row 3: the row says that "
        "nothing of it is learned: its weight is 0",
    ]
    assert report.as_dict()["heeded"]["'weight'"] == {"count": 2, "examples": ["row 1", "row 2"]}
    assert report.merge(report).unread["'id'"].count == 6


def test_rows_of_no_known_format_are_not_counted_by_format() -> None:
    _, report = build_datums([{"mine": [1.0, 1.0]}], lambda row: make(None, "error")(row["mine"]))
    assert report.formats == {}


def test_held_out_rows_that_are_trained_on_are_named() -> None:
    def tokens(*ids: int) -> Row:
        row = Row(tokens=ids)
        row.place = f"tokens {ids}"
        return row

    def report(*rows: Row) -> DataReport:
        return build_datums(rows, lambda row: datum_from_tokens_weights(list(row["tokens"]), [1] * len(row["tokens"])))[
            1
        ]

    train, held_out = report(tokens(1, 2), tokens(3, 4), tokens(5, 6)), report(tokens(3, 4), tokens(9, 9), tokens(3, 4))
    both = held_out.repeated_from(train)
    assert both.count == 2
    assert both.examples == ["tokens (3, 4) is tokens (3, 4)"] * 2
    assert str(train.repeated_from(report(tokens(9, 9)))) == "0"


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.booleans()), min_size=1, max_size=8))
def test_rows_repeat_exactly_where_their_datums_are_equal(rows: list[tuple[int, bool, bool]]) -> None:
    def build(row: tuple[int, bool, bool]) -> Datum:
        token, weight, has_more = row
        datum = datum_from_tokens_weights([0, token], [0, float(weight)])
        return Datum(datum.model_input, {**datum.loss_fn_inputs, **({"advantages": [0.0]} if has_more else {})})

    _, report = build_datums(rows, build)
    assert report.repeated().count == len(rows) - len(set(rows))


def test_a_survey_holds_one_row_at_a_time() -> None:
    read: list[int] = []

    def rows() -> Any:
        for index in range(3):
            read.append(index)
            yield [1.0] * (index + 2)

    report = DataReport()
    made = survey(rows(), make(None, "error"), report)
    assert len(next(made)) == 1
    assert (read, report.kept) == ([0], 1)
    assert len(list(made)) == report.kept - 1 == 2


def test_an_empty_report_can_be_rendered() -> None:
    assert DataReport().render().splitlines()[0] == "rows    0: 0 kept (0 truncated), 0 dropped"
    assert DataReport().length_quantiles() == {}


def test_without_weights_every_token_is_a_label() -> None:
    _, report = build_datums([1], lambda row: Datum(ModelInput.from_ints([1, 2, 3])))
    assert report.labels_kept == 3
