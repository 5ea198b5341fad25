"""Tokens become datums: shifted once, aligned, and truncated only on request. D1 ... number the faults that must be refused."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossbook.datums import (
    Datum,
    EncodedTextChunk,
    ModelInput,
    check_aligned,
    datum_from_model_input_weights,
    datum_from_tokens_weights,
    datum_from_topk,
)
from lossbook.datums.errors import (
    DatumDropped,
    EmptyLossError,
    LengthMismatchError,
    NonFiniteLossInput,
    ShapeError,
    TokenRangeError,
    TruncationError,
    UnknownInput,
    WeightsError,
)

SEQUENCES = st.lists(st.tuples(st.integers(0, 99), st.sampled_from([0.0, 1.0, 0.25, -2.0])), min_size=2, max_size=40)


def inputs(datum: Datum) -> dict[str, Any]:
    return {key: value.tolist() for key, value in datum.loss_fn_inputs.items()}


def test_tokens_are_shifted_by_one_and_weights_with_them() -> None:
    datum = datum_from_tokens_weights([10, 11, 12, 13], [0, 0, 1, 0.5])
    assert datum.model_input.to_ints() == [10, 11, 12]
    assert inputs(datum) == {"target_tokens": [11, 12, 13], "weights": [0.0, 1.0, 0.5]}


@pytest.mark.parametrize(
    "convert", [list, tuple, np.array, torch.tensor], ids=["list", "tuple", "numpy array", "torch tensor"]
)
def test_lists_arrays_and_tensors_give_the_same_datum(convert: Any) -> None:
    datum = datum_from_tokens_weights(convert([1, 2, 3]), convert([0.0, 1.0, 0.5]))
    assert datum == datum_from_tokens_weights([1, 2, 3], [0.0, 1.0, 0.5])
    model_input = ModelInput([EncodedTextChunk([1]), EncodedTextChunk([2, 3])])
    assert datum_from_model_input_weights(model_input, convert([0.0, 1.0, 0.5])) == datum


def test_what_a_caller_does_with_its_lists_later_changes_no_chunk_and_no_model_input() -> None:
    tokens = [1, 2, 3]
    chunk = EncodedTextChunk(tokens=tokens)
    chunks = [chunk]
    model_input = ModelInput(chunks)
    tokens.clear()
    chunks.append(EncodedTextChunk([9]))
    assert chunk.tokens == [1, 2, 3]
    assert model_input.to_ints() == [1, 2, 3]
    assert model_input == ModelInput(chunks=(chunk,))


def test_a_model_input_of_the_tinker_sdk_is_accepted() -> None:
    tinker = pytest.importorskip("tinker")
    datum = datum_from_model_input_weights(tinker.ModelInput.from_ints([1, 2, 3]), torch.tensor([0.0, 1.0, 1.0]))
    assert datum == datum_from_tokens_weights([1, 2, 3], [0, 1, 1])


@given(SEQUENCES)
def test_every_target_is_the_next_token_and_carries_its_own_weight(sequence: list[tuple[int, float]]) -> None:
    tokens, weights = zip(*sequence, strict=True)
    datum = datum_from_tokens_weights(tokens, weights)
    check_aligned(datum)
    assert datum.model_input.to_ints() == list(tokens[:-1])
    assert inputs(datum) == {"target_tokens": list(tokens[1:]), "weights": list(weights[1:])}


@pytest.mark.parametrize(
    ("count", "hint"),
    [
        pytest.param(
            2,
            ". Off by one: give one entry per unshifted token; weights is shifted with the tokens",
            id="D1: shifted already",
        ),
        pytest.param(4, "", id="D1: one too many"),
    ],
)
def test_weights_of_another_length_are_refused_not_cut(count: int, hint: str) -> None:
    with pytest.raises(LengthMismatchError) as caught:
        datum_from_tokens_weights([1, 2, 3], [1.0] * count)
    assert str(caught.value).startswith(f"weights has {count} entries for 3 tokens{hint}")


def test_weights_must_be_one_flat_list() -> None:
    with pytest.raises(ShapeError, match=r"weights must be one flat list of numbers, not an array of shape \[2, 1\]"):
        datum_from_tokens_weights([1, 2], [[1.0], [1.0]])


@pytest.mark.parametrize("tokens", [[], [7]], ids=["D11: no token", "D11: one token"])
def test_fewer_than_two_tokens_leave_nothing_to_predict(tokens: list[int]) -> None:
    with pytest.raises(EmptyLossError, match="leave nothing to predict: at least 2 are needed"):
        datum_from_tokens_weights(tokens, [1.0] * len(tokens))


def test_negative_tokens_and_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(TokenRangeError, match="target_tokens holds -1 at position 1"):
        datum_from_tokens_weights([1, 2, -1], [0, 1, 1])
    with pytest.raises(NonFiniteLossInput, match="weights is nan at position 0"):
        datum_from_tokens_weights([1, 2, 3], [0, math.nan, 1])


class TestMean:
    """reduction="mean": the weights of a datum sum to one."""

    def test_divides_by_the_sum_of_the_shifted_weights(self) -> None:
        datum = datum_from_tokens_weights([1, 2, 3, 4], [9, 1, 0, 3], reduction="mean")
        assert inputs(datum)["weights"] == [0.25, 0.0, 0.75]

    def test_is_taken_after_truncation(self) -> None:
        datum = datum_from_tokens_weights([1, 2, 3, 4], [0, 2, 2, 4], 3, "mean", truncation="right")
        assert inputs(datum)["weights"] == [0.5, 0.5]

    def test_of_nothing_is_refused(self) -> None:
        with pytest.raises(EmptyLossError, match="the sum of the weights, which is 0"):
            datum_from_tokens_weights([1, 2, 3], [1, 0, 0], reduction="mean")

    def test_of_negative_weights_is_refused(self) -> None:
        with pytest.raises(WeightsError, match=r"needs weights >= 0, but weights\[1\] is -1.0"):
            datum_from_tokens_weights([1, 2, 3], [0, 2, -1], reduction="mean")

    def test_of_nan_names_the_position(self) -> None:
        with pytest.raises(NonFiniteLossInput, match="weights is nan at position 1"):
            datum_from_tokens_weights([1, 2, 3], [0, 2, math.nan], reduction="mean")

    def test_is_the_only_other_reduction(self) -> None:
        with pytest.raises(WeightsError, match="reduction must be 'none' or 'mean', not 'sum'"):
            datum_from_tokens_weights([1, 2], [0, 1], reduction="sum")  # type: ignore[arg-type]


def test_all_weights_zero_are_allowed_without_a_mean() -> None:
    assert inputs(datum_from_tokens_weights([1, 2], [0, 0]))["weights"] == [0.0]


class TestTruncation:
    """max_length counts tokens before the shift; nothing is cut unless asked for, and never every label."""

    TOKENS = (0, 1, 2, 3, 4, 5)

    def test_a_sequence_of_exactly_max_length_tokens_stays(self) -> None:
        assert datum_from_tokens_weights(self.TOKENS, [1] * 6, 6).model_input.length == 5

    def test_d12_a_long_sequence_is_by_default_an_error_that_counts_the_labels_it_would_lose(self) -> None:
        with pytest.raises(TruncationError) as caught:
            datum_from_tokens_weights(self.TOKENS, [0, 0, 1, 1, 1, 1], 4)
        assert str(caught.value) == (
            "6 tokens are longer than max_length=4 (counted before the shift by one). Keeping the first 4 would lose 2 "
            "of 4 label tokens. Raise max_length, or choose truncation='right', 'left', 'middle' or 'drop'"
        )
        assert not isinstance(caught.value, DatumDropped)

    def test_d12_under_drop_a_long_sequence_raises_datum_dropped(self) -> None:
        with pytest.raises(DatumDropped, match="leaves out the sequence and its 4 label tokens") as caught:
            datum_from_tokens_weights(self.TOKENS, [0, 0, 1, 1, 1, 1], 4, truncation="drop")
        assert caught.value.labels == 4

    @pytest.mark.parametrize(
        ("policy", "read", "targets", "weights"),
        [
            pytest.param("right", [0, 1, 2], [1, 2, 3], [1, 1, 1], id="right keeps the first tokens"),
            pytest.param("left", [2, 3, 4], [3, 4, 5], [1, 1, 1], id="left keeps the last tokens"),
            pytest.param("middle", [0, 1, 4], [1, 4, 5], [1, 0, 1], id="middle: 4 never followed 1, so it is no label"),
        ],
    )
    def test_each_policy_keeps_its_part_of_the_tokens(
        self, policy: Any, read: list[int], targets: list[int], weights: list[float]
    ) -> None:
        datum = datum_from_tokens_weights(self.TOKENS, [1] * 6, 4, truncation=policy)
        assert datum.model_input.to_ints() == read
        assert inputs(datum) == {"target_tokens": targets, "weights": weights}

    def test_middle_keeps_one_more_token_at_the_beginning_of_an_odd_max_length(self) -> None:
        datum = datum_from_tokens_weights(self.TOKENS, [1] * 6, 5, truncation="middle")
        assert [*datum.model_input.to_ints(), datum.loss_fn_inputs["target_tokens"].data[-1]] == [0, 1, 2, 4, 5]

    @pytest.mark.parametrize(
        ("policy", "labelled"), [("right", [4, 5]), ("left", [1, 2]), ("middle", [2, 3]), ("middle", [2, 4])]
    )
    def test_cutting_away_every_label_is_an_error(self, policy: Any, labelled: list[int]) -> None:
        weights = [1.0 if i in labelled else 0.0 for i in range(6)]
        with pytest.raises(TruncationError, match=f"would remove all 2 label tokens .the first is token {labelled[0]}"):
            datum_from_tokens_weights(self.TOKENS, weights, 4, truncation=policy)

    def test_without_labels_there_is_nothing_to_lose(self) -> None:
        datum = datum_from_tokens_weights(self.TOKENS, [1, 0, 0, 0, 0, 0], 4, truncation="left")
        assert datum.model_input.to_ints() == [2, 3, 4]

    @pytest.mark.parametrize("max_length", [1, 0, -5, 2.5])
    def test_a_max_length_below_two_is_refused(self, max_length: Any) -> None:
        with pytest.raises(TruncationError, match=f"max_length must be at least 2 tokens.*, not {max_length}"):
            datum_from_tokens_weights([1, 2, 3], [1, 1, 1], max_length)

    def test_an_unknown_policy_is_refused_even_when_nothing_is_too_long(self) -> None:
        with pytest.raises(TruncationError, match=r"unknown truncation 'rigth'.*Did you mean 'right'"):
            datum_from_tokens_weights([1, 2], [1, 1], truncation="rigth")  # type: ignore[arg-type]

    @given(SEQUENCES, st.integers(2, 45), st.sampled_from(["right", "left", "middle"]))
    def test_kept_tokens_keep_their_targets_and_weights(
        self, sequence: list[tuple[int, float]], max_length: int, policy: Literal["right", "left", "middle"]
    ) -> None:
        # tokens number themselves, so that each label can be traced
        tokens = list(range(len(sequence)))
        weights = [weight for _, weight in sequence]
        try:
            datum = datum_from_tokens_weights(tokens, weights, max_length, truncation=policy)
        except TruncationError:
            return
        check_aligned(datum)
        assert datum.model_input.length == min(len(tokens), max_length) - 1
        arrays = inputs(datum)
        triples = zip(datum.model_input.to_ints(), arrays["target_tokens"], arrays["weights"], strict=True)
        for read, target, weight in triples:
            if target == read + 1:
                assert weight == weights[target]
            else:
                assert weight == 0


class TestTopK:
    """datum_from_topk: K weighted targets at each position."""

    def test_rows_are_about_the_tokens_after_the_first(self) -> None:
        datum = datum_from_topk([5, 6, 7], [[6, 1], [7, 2]], [[0.75, 0.25], [1.0, 0.0]])
        assert datum.model_input.to_ints() == [5, 6]
        assert inputs(datum) == {"target_tokens": [[6, 1], [7, 2]], "weights": [[0.75, 0.25], [1.0, 0.0]]}

    @given(st.lists(st.integers(0, 50), min_size=2, max_size=20))
    def test_n13_one_target_of_weight_one_is_plain_cross_entropy_data(self, tokens: list[int]) -> None:
        one = datum_from_topk(tokens, [[t] for t in tokens[1:]], [[1.0]] * (len(tokens) - 1))
        plain = datum_from_tokens_weights(tokens, [1.0] * len(tokens))
        assert one.model_input == plain.model_input
        for key, value in one.loss_fn_inputs.items():
            assert value.data == plain.loss_fn_inputs[key].data

    def test_as_many_rows_as_tokens_is_ambiguous_and_refused(self) -> None:
        with pytest.raises(
            LengthMismatchError, match=r"pass rows \[:-1\]; if it is about tokens\[t\] itself, pass rows"
        ):
            datum_from_topk([5, 6], [[6], [7]], [[1.0], [1.0]])

    @pytest.mark.parametrize(
        ("tokens", "weights", "error", "message"),
        [
            ([[1, 2]], [[1.0]], LengthMismatchError, r"topk_weights has shape \[1, 1\], topk_tokens \[1, 2\]"),
            ([1, 2], [1.0, 1.0], ShapeError, r"topk_tokens must be \[N, K\], N = 1, not \[2\]"),
            ([[1]] * 4, [[1.0]] * 4, LengthMismatchError, "topk_tokens has 4 rows for 2 tokens; 1 are needed"),
        ],
    )
    def test_other_shapes_are_refused(self, tokens: Any, weights: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            datum_from_topk([5, 6], tokens, weights)

    def test_d10_an_id_twice_in_a_row_is_refused(self) -> None:
        with pytest.raises(UnknownInput, match="topk_tokens holds id 3 more than once in row 1"):
            datum_from_topk([5, 6, 7], [[3, 4, 5], [3, 8, 3]], [[0.2, 0.3, 0.5]] * 2)

    def test_d10_dedupe_adds_up_the_weights(self) -> None:
        datum = datum_from_topk([5, 6], [[3, 8, 3, 3]], [[0.25, 0.125, 0.5, 0.125]], dedupe=True)
        assert inputs(datum) == {"target_tokens": [[3, 8, 3, 3]], "weights": [[0.875, 0.125, 0.0, 0.0]]}

    def test_slots_of_weight_zero_are_padding_and_may_repeat(self) -> None:
        datum = datum_from_topk([5, 6], [[3, 0, 0, 3]], [[1.0, 0.0, 0.0, 0.0]])
        assert inputs(datum)["weights"] == [[1.0, 0.0, 0.0, 0.0]]

    @given(st.integers(0, 2**31))
    def test_dedupe_keeps_each_ids_total_weight(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        rows, width = int(rng.integers(1, 6)), int(rng.integers(1, 6))
        ids, weights = rng.integers(0, 4, (rows, width)), rng.integers(0, 8, (rows, width)) / 8
        deduped = inputs(datum_from_topk(np.zeros(rows + 1, dtype=int), ids, weights, dedupe=True))
        for row in range(rows):
            for token in range(4):
                after = [w for t, w in zip(ids[row], deduped["weights"][row], strict=True) if t == token]
                assert sum(after) == weights[row][ids[row] == token].sum()
                assert np.count_nonzero(after) <= 1

    def test_rows_are_truncated_with_their_tokens(self) -> None:
        datum = datum_from_topk([5, 6, 7, 8], [[6], [7], [8]], [[1.0]] * 3, max_length=3, truncation="left")
        assert datum.model_input.to_ints() == [6, 7]
        assert inputs(datum)["target_tokens"] == [[7], [8]]
