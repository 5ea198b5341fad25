"""Rows of token ids: what says that a token is not learned is heeded, and packed rows are divided, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossbook.datums import Datum, datum_from_row, datums_from_row
from lossbook.datums.builders.notes import watch_notes
from lossbook.datums.errors import (
    AlignmentError,
    DataFileError,
    DtypeError,
    EmptyLossError,
    LengthMismatchError,
    LossbookError,
    RowLeftOut,
    TruncationError,
)

IDS = [5, 6, 7, 8, 9]
MASKS = ("loss_mask", "completion_mask", "assistant_masks", "assistant_mask", "response_mask")


def pairs(datum: Datum) -> list[tuple[int, int, float]]:
    """(token, the token it predicts, weight) at every position."""
    inputs = datum.loss_fn_inputs
    columns = (datum.model_input.to_ints(), inputs["target_tokens"].data, inputs["weights"].data)
    return list(zip(*columns, strict=True))  # type: ignore[arg-type]


def weights(row: dict[str, Any]) -> list[float]:
    return list(datum_from_row(row, None).loss_fn_inputs["weights"].data)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "row",
    [
        {"input_ids": IDS, "labels": IDS},
        {"input_ids": IDS, "labels": [-100, 6, 7, -100, 9]},
        {"tokens": IDS, "weights": [1, 1, 1, 0, 1]},
    ],
)
def test_a_mask_beside_labels_or_weights_is_heeded(mask: str, row: dict[str, Any]) -> None:
    assert weights({**row, mask: [0, 1, 0, 0, 1]}) == [1, 0, 0, 1]
    assert weights({**row, mask: [False, True, False, False, True]}) == [1, 0, 0, 1]
    assert weights({**row, mask: None}) == weights(row)


@pytest.mark.parametrize("mask", ["loss_mask", "completion_mask", "assistant_masks"])
def test_input_ids_with_a_mask_need_no_labels(mask: str) -> None:
    assert weights({"input_ids": IDS, mask: [0, 0, 0, 1, 1], "labels": None}) == [0, 0, 1, 1]


@given(
    st.lists(st.tuples(*[st.booleans()] * 6), min_size=2, max_size=7),
    st.sets(st.sampled_from(["labels", "weights", "loss_mask", "completion_mask", "assistant_masks"]), min_size=1),
    st.integers(0, 2),
)
def test_a_token_is_learned_exactly_where_everything_says_so(
    tokens: list[tuple[bool, ...]], keys: set[str], padding: int
) -> None:
    said = {key: [flags[i] for flags in tokens] for i, key in enumerate(sorted(keys))}
    ids = list(range(10, 10 + len(tokens)))
    row: dict[str, Any] = {"input_ids": ids + [0] * padding}
    for key, flags in said.items():
        if key == "labels":
            row[key] = [i if flag else -100 for i, flag in zip(ids, flags, strict=True)] + [-100] * padding
        else:
            row[key] = [0.5 * flag if key == "weights" else flag for flag in flags] + [0] * padding
    if padding:
        row["attention_mask"] = [1] * len(ids) + [0] * padding
    if keys == {"weights"}:
        row["tokens"] = row.pop("input_ids")
    expected = [(0.5 if "weights" in keys else 1.0) * all(flags[i] for flags in said.values()) for i in range(len(ids))]
    try:
        datum = datum_from_row(row, None)
    except EmptyLossError:
        assert not any(expected[1:])
        return
    except AlignmentError:
        assert "labels" in keys, "a mask that agrees with the labels only after a shift is refused"
        assert len(keys) > 1
        return
    assert [weight for _, _, weight in pairs(datum)] == expected[1:]
    assert datum.model_input.to_ints() == ids[:-1]


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        ({"loss_mask": [0, 1]}, LengthMismatchError, "loss_mask has 2 entries for 5 input_ids$"),
        (
            {"loss_mask": [0, 1, 1, 1]},
            LengthMismatchError,
            "loss_mask has 4 entries for 5 input_ids. It belongs to the unshifted input_ids",
        ),
        ({"loss_mask": [0, 1, 0.5, 1, 1]}, DataFileError, r"loss_mask\[2\] is 0.5; a mask holds 0 and 1.*'weights'"),
        ({"completion_mask": "abc"}, DtypeError, "^'completion_mask': "),
        ({"loss_mask": [0] * 5}, EmptyLossError, "leaves nothing to learn|every label"),
        ({"prompt_mask": [1, 1, 0, 0, 0]}, DataFileError, "'prompt_mask' is not read .*give 'completion_mask'"),
        ({"images": ["a"]}, DataFileError, "'images' is not read .*reads text alone"),
        ({"sample_weight": 0}, DataFileError, "'sample_weight' is not read .*write 'weight'"),
        ({"weight": "0"}, DataFileError, "'weight' is '0'; the weight of a row is a finite number"),
        ({"weight": True}, DataFileError, "'weight' is True; the weight of a row"),
        ({"attention_mask": [[1, 0], [1, 1]]}, LossbookError, "^'attention_mask': "),
        (
            {"attention_mask": [1, 1, -1, 1, 1]},
            DataFileError,
            r"attention_mask\[2\] is negative; it holds 0 for padding",
        ),
        ({"target_tokens": IDS}, DataFileError, "'target_tokens' is not read .*give 'labels', unshifted"),
    ],
)
def test_what_cannot_be_heeded_is_refused_by_name(more: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        datum_from_row({"input_ids": IDS, "labels": IDS, **more}, None)


def test_a_mask_that_is_shifted_against_the_labels_is_refused() -> None:
    row = {"input_ids": IDS, "labels": [-100, -100, 7, 8, 9], "loss_mask": [0, 1, 1, 1, 0]}
    with pytest.raises(AlignmentError, match="loss_mask is shifted by one against labels: give it unshifted"):
        datum_from_row(row, None)


@pytest.mark.parametrize(("weight", "expected"), [(0.5, [0.5, 0.5, 0, 0.5]), (1, [1, 1, 0, 1]), (-2, [-2, -2, 0, -2])])
def test_the_weight_of_a_row_multiplies_those_of_its_tokens(weight: float, expected: list[float]) -> None:
    assert weights({"input_ids": IDS, "labels": [5, 6, 7, -100, 9], "weight": weight}) == expected


@pytest.mark.parametrize(
    "says_no", [{"weight": 0}, {"weight": 0.0}, {"trainable": False}, {"weight": 2, "train": False}]
)
@pytest.mark.parametrize(
    "row",
    [
        {"input_ids": IDS, "labels": IDS},
        {"tokens": IDS, "weights": [1] * 5},
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": "b", "label": True},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    ],
)
def test_nothing_is_learned_of_a_row_of_weight_0(
    row: dict[str, Any], says_no: dict[str, Any], tokenizer_with: Any
) -> None:
    if says_no.get("weight") == 2 and ("label" in row or "chosen" in row):
        says_no = {"train": False}
    with pytest.raises(RowLeftOut, match="its weight is 0"):
        datums_from_row({**row, **says_no}, tokenizer_with("marked"))
    kept = datums_from_row({**row, "weight": 1, "trainable": True}, tokenizer_with("marked"))
    assert kept == datums_from_row(row, tokenizer_with("marked"))


def test_a_weight_between_cannot_be_given_to_answers_that_are_compared(tokenizer_with: Any) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "weight": 0.5}
    with pytest.raises(
        DataFileError, match=r"'weight' is 0.5, but losses compare the whole answers of a preference pair"
    ):
        datums_from_row(row, tokenizer_with("marked"))


PACKED = {"input_ids": [1, 2, 3, 4, 5, 6], "labels": [1, 2, 3, 4, 5, 6]}


@pytest.mark.parametrize(
    "more",
    [
        {"position_ids": [0, 1, 2, 0, 1, 2]},
        {"seq_lengths": [3, 3]},
        {"cu_seqlens": [0, 3, 6]},
        {"cu_seq_lens_q": [0, 3, 6], "cu_seq_lens_k": [0, 3, 6]},
        {"attention_mask": [1, 1, 1, 2, 2, 2]},
        {"segment_ids": [0, 0, 0, 1, 1, 1]},
        {"seq_idx": [4, 4, 4, 9, 9, 9]},
        {"document_ids": [2, 2, 2, 1, 1, 1], "position_ids": [0, 1, 2, 0, 1, 2]},
    ],
    ids=lambda more: " and ".join(more),
)
def test_a_packed_row_is_divided_and_no_token_is_learned_across_a_border(more: dict[str, Any]) -> None:
    with watch_notes() as notes:
        first, second = datums_from_row({**PACKED, **more}, None)
    assert pairs(first) == [(1, 2, 1), (2, 3, 1)]
    assert pairs(second) == [(4, 5, 1), (5, 6, 1)]
    assert any("divides packed rows" in what for what in notes.heeded)
    assert not notes.left_unread()
    with pytest.raises(DataFileError, match="holds 2 packed sequences and makes as many datums; use datums_from_row"):
        datum_from_row({**PACKED, **more}, None)


def test_padding_around_a_packed_row_is_left_out() -> None:
    row = {
        "input_ids": [0, 1, 2, 3, 4, 5, 0],
        "labels": [-100, 1, 2, 3, 4, 5, -100],
        "attention_mask": [0, 1, 1, 2, 2, 2, 0],
        "position_ids": [1, 0, 1, 0, 1, 2, 1],
    }
    assert [pairs(datum) for datum in datums_from_row(row, None)] == [[(1, 2, 1)], [(3, 4, 1), (4, 5, 1)]]


def test_every_input_per_token_is_divided_with_its_tokens() -> None:
    row = {"tokens": [1, 2, 3, 4], "weights": [0, 0.5, 0, 1], "advantages": [0, 7, 0, 9], "seq_lengths": [2, 2]}
    first, second = datums_from_row({**row, "weight": 2}, None)
    assert (first.loss_fn_inputs["advantages"].data, first.loss_fn_inputs["weights"].data) == ([7], [1])
    assert (second.loss_fn_inputs["advantages"].data, second.loss_fn_inputs["weights"].data) == ([9], [2])


def test_a_packed_sequence_without_a_learned_token_is_left_out_and_noted() -> None:
    row = {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, 3, 4, 5], "seq_lengths": [2, 2, 1]}
    with watch_notes() as notes:
        (datum,) = datums_from_row(row, None)
    assert pairs(datum) == [(3, 4, 1)]
    assert "packed sequences without a learned token, which are left out" in notes.heeded


@pytest.mark.parametrize(
    "more",
    [
        {"position_ids": [0, 1, 2, 3, 4, 5]},
        {"seq_lengths": [6]},
        {"attention_mask": [1] * 6},
        {"segment_ids": [7] * 6},
        {"seq_lengths": [], "position_ids": None},
    ],
    ids=lambda more: " and ".join(more),
)
def test_a_row_of_one_sequence_is_one_datum(more: dict[str, Any]) -> None:
    assert datum_from_row({**PACKED, **more}, None) == datum_from_row(PACKED, None)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"position_ids": [0, 1, 2, 5, 6, 7]}, r"position_ids\[3\] is 5 after 2, but lossbook counts positions one by"),
        ({"position_ids": [2, 3, 4, 5, 6, 7]}, "position_ids begin with 2"),
        ({"position_ids": [0, 1]}, "'position_ids' has 2 entries for 6 tokens"),
        ({"seq_lengths": [3, 2]}, "'seq_lengths' adds up to 5, but the row has 6 tokens"),
        ({"seq_lengths": [6, 0]}, "'seq_lengths' adds up to 6, .* of at least one token"),
        ({"cu_seqlens": [0, 3]}, "'cu_seqlens' ends at 3, but the row has 6 tokens"),
        ({"segment_ids": [1, 1, 2, 2, 1, 1]}, r"segment_ids\[4\] is 1 again after another number"),
        (
            {"position_ids": [0, 1, 2, 0, 1, 2], "seq_lengths": [2, 4]},
            r"'position_ids' and 'seq_lengths' divide the row differently: at \[3\] and at \[2\]",
        ),
    ],
)
def test_packing_that_is_not_understood_is_refused_by_name(more: dict[str, Any], message: str) -> None:
    with pytest.raises(DataFileError, match=message):
        datums_from_row({**PACKED, **more}, None)


def test_truncation_is_about_each_packed_sequence() -> None:
    row = {**PACKED, "seq_lengths": [2, 4]}
    assert [len(pairs(d)) for d in datums_from_row(row, None, max_length=3, truncation="right")] == [1, 2]
    assert [len(pairs(d)) for d in datums_from_row(row, None, max_length=3, truncation="drop")] == [1]
    with pytest.raises(TruncationError, match=r"^packed sequence 1: 4 tokens are longer"):
        datums_from_row(row, None, max_length=3)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_a_packed_row_gives_the_datums_of_its_sequences(lengths: list[int], data: st.DataObject) -> None:
    sequences: list[dict[str, Any]] = []
    token = 10
    for length in lengths:
        ids = list(range(token, token + length))
        learned = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
        sequences.append({"input_ids": ids, "labels": [i if y else -100 for i, y in zip(ids, learned, strict=True)]})
        token += length
    packed: dict[str, Any] = {key: [i for one in sequences for i in one[key]] for key in ("input_ids", "labels")}
    packed["position_ids"] = [i for length in lengths for i in range(length)]
    alone: list[Datum] = []
    for one in sequences:
        try:
            alone += datums_from_row(one, None)
        except EmptyLossError:
            continue
    try:
        assert datums_from_row(packed, None) == alone
    except EmptyLossError:
        assert not alone
