"""Checks of datums and their error messages. D1 ... number the faults that must be refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossbook.datums import Datum, ModelInput, TensorData, check_aligned, check_datum, check_datums
from lossbook.datums.errors import (
    AlignmentError,
    DtypeError,
    EmptyLossError,
    LengthMismatchError,
    LossbookError,
    MissingInput,
    NonFiniteLossInput,
    ShapeError,
    TokenRangeError,
)
from lossbook.datums.types import EncodedTextChunk, token_array


def datum(tokens: list[int], **inputs: Any) -> Datum:
    return Datum(ModelInput.from_ints(tokens), inputs)


GOOD = datum([1, 2, 3], target_tokens=[2, 3, 4], weights=[0.0, 1.0, 0.5])


def test_a_good_datum_passes_in_every_form() -> None:
    check_datum(GOOD, vocab_size=5, aligned=True)
    check_datum(datum([1, 2]))
    check_datum(datum([1, 2], weights=[0, 1]))
    check_datum(datum([1, 2], reward=3.0, labels=[1, 2], hidden=np.zeros((2, 4))))
    check_datum(datum([1, 2], target_tokens=[[1, 2], [3, 4]], weights=[[1, 0], [0, 1]]))
    check_datum(datum([1, 2], target_tokens=[[1, 2], [3, 4]], weights=[1, 0, 0, 1], advantages=[1, 2, 3, 4]))


def test_csr_sparse_targets_and_weights_pass() -> None:
    ids = TensorData([3, 4], "int64", [2, 2], sparse_crow_indices=[0, 1, 2], sparse_col_indices=[0, 1])
    weights = TensorData([1.0, 0.5], "float32", [2, 2], sparse_crow_indices=[0, 1, 2], sparse_col_indices=[0, 1])
    check_datum(datum([1, 2], target_tokens=ids, weights=weights), vocab_size=5)


def test_datums_of_the_tinker_sdk_are_converted() -> None:
    tinker = pytest.importorskip("tinker")
    theirs = tinker.Datum(
        model_input=tinker.ModelInput.from_ints([1, 2]), loss_fn_inputs={"target_tokens": [2, 3], "weights": [1, 0]}
    )
    (ours,) = check_datums([theirs], vocab_size=4)
    assert isinstance(ours, Datum)
    assert ours.loss_fn_inputs["weights"].data == [1.0, 0.0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        pytest.param([1.0] * 2, "weights has 2 entries, target_tokens has 3 entries", id="D1: one weight too few"),
        pytest.param([1.0] * 4, "weights has 4 entries, target_tokens has 3 entries", id="D1: one weight too many"),
    ],
)
def test_weights_off_by_one_are_refused_with_the_hint_about_the_shift(weights: list[float], message: str) -> None:
    wrong = datum([1, 2, 3], target_tokens=[2, 3, 4], weights=weights)
    with pytest.raises(LengthMismatchError) as caught:
        check_datums([GOOD, wrong])
    assert str(caught.value) == (
        f"datum 1 of 2: {message}. Off by one: does weights belong to the unshifted tokens? "
        "Use datum_from_tokens_weights"
    )


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"target_tokens": [2, 3]}, "target_tokens has 2 entries, model_input has 3 tokens. Off by one"),
        ({"target_tokens": []}, "target_tokens has 0 entries, model_input has 3 tokens"),
        ({"target_tokens": 2}, "target_tokens has 1 entry, model_input has 3 tokens"),
        ({"target_tokens": [1, 2, 3, 4, 5, 6]}, r"give them the shape \[3, 2\]"),
        ({"weights": [1.0]}, r"weights has 1 entry, model_input has 3 tokens\.$"),
        ({"weights": 1.0}, "weights is one number; it needs one for each of the 3 tokens"),
        ({"advantages": [1.0, 2.0]}, "does advantages belong to the unshifted tokens. Use datums_from_traj"),
        ({"hidden": np.zeros((7, 2))}, r"hidden has shape \[7, 2\], model_input has 3 tokens"),
    ],
)
def test_an_error_about_lengths_names_both(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(LengthMismatchError, match=message):
        check_datum(datum([1, 2, 3], **inputs))


@pytest.mark.parametrize("weights", [[1.0, 1.0], [[1.0], [1.0]], 1.0], ids=["N", "N x 1", "one number"])
def test_d9_one_weight_per_position_for_k_targets_is_refused_with_the_order_of_values(weights: Any) -> None:
    with pytest.raises(
        LengthMismatchError, match=r"target_tokens is \[2, 3\]: weights needs N\*K = 6 values in row-maj"
    ):
        check_datum(datum([1, 2], target_tokens=[[1, 2, 3], [4, 5, 6]], weights=weights))


def test_transposed_weights_are_refused_although_their_number_is_right() -> None:
    with pytest.raises(LengthMismatchError, match=r"weights has shape \[3, 2\], target_tokens has shape \[2, 3\]"):
        check_datum(datum([1, 2], target_tokens=[[1, 2, 3], [4, 5, 6]], weights=np.ones((3, 2))))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        pytest.param([7, 9], "", id="D2: other tokens"),
        pytest.param([1, 2, 3], " The targets are the inputs themselves: they were not shifted", id="D2: not shifted"),
        pytest.param([3, 4, 5, 6], " The targets are shifted by two", id="D2: shifted twice"),
    ],
)
def test_targets_that_are_not_the_next_tokens_are_refused_on_request(targets: list[int], message: str) -> None:
    wrong = datum(list(range(1, len(targets) + 1)), target_tokens=targets)
    check_datum(wrong)  # sampled or distilled targets may differ
    with pytest.raises(AlignmentError) as caught:
        check_datum(wrong, 4, aligned=True)
    assert str(caught.value).startswith(
        f"datum 4: target_tokens[0] is {targets[0]}, but the next input token, model_input[1], is 2.{message}"
    )


def test_targets_of_weight_0_need_not_be_aligned() -> None:
    check_aligned(datum([1, 2, 3], target_tokens=[0, 3, 9], weights=[0.0, 1.0, 1.0]))


def test_alignment_needs_one_target_per_position() -> None:
    with pytest.raises(MissingInput, match="datum 3 carries no target_tokens"):
        check_aligned(datum([1, 2]), 3)
    with pytest.raises(AlignmentError, match=r"shape \[2, 1\] are not one next token per position"):
        check_aligned(datum([1, 2], target_tokens=[[2], [3]]))


@pytest.mark.parametrize("wrong", [[2.7], [2.0], torch.tensor([2.7]), np.array([2.7])], ids=str)
def test_d3_float_tokens_are_not_cast(wrong: Any) -> None:
    with pytest.raises(DtypeError, match=r"'target_tokens'.*must be integers, got floats"):
        datum([1], target_tokens=wrong)
    with pytest.raises(DtypeError, match="must be integers, got floats"):
        ModelInput.from_ints(wrong)


def test_d3_float_targets_hidden_in_tensor_data_or_a_chunk_are_not_cast_either() -> None:
    with pytest.raises(DtypeError, match=r"'target_tokens'.*must be integers"):
        datum([1], target_tokens=TensorData([2.7]))
    with pytest.raises(DtypeError, match="datum 0: model_input: tokens must be integers"):
        check_datum(Datum(ModelInput([EncodedTextChunk([2.7])])), 0)  # type: ignore[list-item]


def test_integer_weights_in_tensor_data_become_floats() -> None:
    assert datum([1], weights=TensorData([1], "int64")).loss_fn_inputs["weights"].dtype == "float32"


@pytest.mark.parametrize("value", [2**63, 2**70, -(2**63) - 1])
def test_d4_token_ids_beyond_64_bits_are_out_of_range(value: int) -> None:
    with pytest.raises(TokenRangeError, match=r"'target_tokens'.*an integer beyond 64 bits"):
        datum([1, 2], target_tokens=[value, -1])
    with pytest.raises(DtypeError, match=r"'labels'.*an integer beyond 64 bits"):
        datum([1, 2], labels=[10**400, 0.5])
    with pytest.raises(TokenRangeError, match="no vocabulary reaches that far"):
        token_array([value, -1])


@pytest.mark.parametrize(
    ("tokens", "targets", "message"),
    [
        ([1, -3], [1, 1], r"model_input holds -3 at position 1; token ids must lie in \[0, 10\)"),
        ([1, 10], [1, 1], "model_input holds 10 at position 1; .* another model's tokenizer"),
        ([1, 1], [1, 10], "target_tokens holds 10 at position 1"),
        ([1, 1], [[1, 2], [3, 99]], "target_tokens holds 99 at position 1, column 1"),
        (
            [1, 1],
            [-100, 1],
            "target_tokens holds -100 at position 0.*Other libraries ignore the label -100; .* the weight 0",
        ),
    ],
)
def test_d4_token_ids_outside_the_vocabulary_are_refused(tokens: list[int], targets: Any, message: str) -> None:
    with pytest.raises(TokenRangeError, match=f"datum 0 of 1: {message}"):
        check_datums([datum(tokens, target_tokens=targets)], vocab_size=10)


def test_negative_ids_are_refused_without_a_vocabulary_and_at_weight_0() -> None:
    with pytest.raises(TokenRangeError, match="token ids must not be negative"):
        check_datum(datum([1, 1], target_tokens=[-100, 1], weights=[0.0, 1.0]))


def test_masked_targets_beyond_the_vocabulary_pass_unless_masked_targets_is_set() -> None:
    masked = datum([1, 1], target_tokens=[99, 1], weights=[0.0, 1.0])
    check_datum(masked, vocab_size=10)
    with pytest.raises(TokenRangeError, match="target_tokens holds 99 at position 0"):
        check_datum(masked, vocab_size=10, masked_targets=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("key", ["weights", "advantages", "logprobs", "sampling_logprobs", "anything"])
def test_d5_numbers_that_are_not_finite_are_named_with_datum_key_and_position(key: str, value: float) -> None:
    inputs: dict[str, Any] = {"target_tokens": [2, 3, 4], "weights": [1.0, 1.0, 1.0], key: [0.0, 0.0, value]}
    with pytest.raises(NonFiniteLossInput, match=rf"datum 2: {key} is {value} at position 2"):
        check_datum(datum([1, 2, 3], **inputs), 2)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30], ids=str)
def test_n5_masked_positions_may_hold_any_number_but_weights_must_be_finite(garbage: float) -> None:
    check_datum(datum([1, 2], weights=[0.0, 1.0], advantages=[garbage, 1.0], matrix=[[garbage], [1.0]]))
    check_datum(datum([1, 2], weights=[0.0, 0.0], reward=garbage))
    k_targets = {"target_tokens": [[1, 2], [3, 4]], "weights": [[0, 0], [0, 1]]}
    check_datum(datum([1, 2], **k_targets, advantages=[garbage, 1.0], teacher=[[garbage, garbage], [garbage, 1.0]]))


def test_of_k_targets_only_masked_entries_may_hold_any_number() -> None:
    wrong = datum([1], target_tokens=[[1, 2]], weights=[[0.0, 1.0]], teacher=[[0.0, math.nan]])
    with pytest.raises(NonFiniteLossInput, match="teacher is nan at position 0, column 1; a weight of 0 would leave"):
        check_datum(wrong)


def test_without_weights_every_position_counts() -> None:
    with pytest.raises(NonFiniteLossInput, match="advantages is nan at position 0; there are no weights to mask it"):
        check_datum(datum([1, 2], target_tokens=[2, 3], advantages=[math.nan, 0.0]))


def test_n7_a_logprob_of_minus_infinity_at_an_active_position_is_refused() -> None:
    with pytest.raises(NonFiniteLossInput, match="datum 1 of 2: sampling_logprobs is -inf at position 1"):
        check_datums([GOOD, datum([1, 2], weights=[0.0, 1.0], sampling_logprobs=[-math.inf, -math.inf])])


def test_a_number_about_the_whole_datum_must_be_finite() -> None:
    with pytest.raises(NonFiniteLossInput, match="reward is nan for the whole datum"):
        check_datum(datum([1, 2], weights=[0.0, 1.0], reward=math.nan))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param([[1], [2, 3]], "ragged nested list", id="ragged"),
        pytest.param(
            {"data": [1, 2, 3], "dtype": "int64", "shape": [2, 2]}, "does not hold the 3 numbers", id="shape and data"
        ),
        pytest.param({"crow": [0, 2, 1, 2]}, "must never decrease", id="CSR rows go back"),
        pytest.param({"crow": [0, 1, 1, 2], "col": [0, 9]}, r"must lie in \[0, 2\)", id="CSR column beyond the last"),
        pytest.param(
            {"crow": [0, 1, 1, 1], "col": [0]}, "1 sparse_col_indices for 2 numbers", id="CSR too few columns"
        ),
        pytest.param({"crow": [0, 2]}, "must hold 4 numbers", id="CSR too few rows"),
    ],
)
def test_d8_broken_arrays_are_refused_with_their_key(value: Any, message: str) -> None:
    class Theirs:
        """TensorData of another SDK, which checks nothing."""

        def __init__(self, data: Any, dtype: str, shape: Any, crow: Any = None, col: Any = None) -> None:
            self.data, self.dtype, self.shape = data, dtype, shape
            self.sparse_crow_indices, self.sparse_col_indices = crow, col

    if isinstance(value, dict) and "crow" in value:
        value = Theirs([1, 2], "int64", [3, 2], value["crow"], value.get("col", [0, 1]))
    elif isinstance(value, dict):
        value = Theirs(**value)
    with pytest.raises(ShapeError, match=rf"loss_fn_inputs\['target_tokens'\]: .*{message}"):
        datum([1, 2, 3], target_tokens=value)


def test_d11_no_datums_and_no_tokens_are_refused() -> None:
    with pytest.raises(EmptyLossError, match="there are no datums"):
        check_datums([])
    with pytest.raises(EmptyLossError, match="datum 1 of 2: model_input has no tokens"):
        check_datums([GOOD, Datum(ModelInput.empty())])


def test_d11_a_datum_of_one_token_is_enough() -> None:
    check_datum(datum([1], target_tokens=[2], weights=[1.0]))


def test_an_object_that_is_not_a_datum_is_named_by_its_index() -> None:
    with pytest.raises(DtypeError, match="datum 1 of 2: expected a Datum"):
        check_datums([GOOD, 3])
    with pytest.raises(DtypeError, match="needs 'model_input', but this mapping holds tokens"):
        check_datums([{"tokens": [1]}])


@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(2, 50))
def test_numbers_at_masked_positions_do_not_change_the_verdict(seed: int, length: int, vocab: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.choice([0.0, 1.0, -0.5], size=length)
    tokens = rng.integers(0, vocab, size=length)
    targets = rng.integers(0, vocab, size=length)
    advantages = np.where(weights == 0, rng.choice([np.nan, np.inf, 1e30]), rng.normal(size=length))
    check_datum(datum(tokens.tolist(), target_tokens=targets, weights=weights, advantages=advantages), vocab_size=vocab)
    if weights.any():
        advantages[np.flatnonzero(weights)[-1]] = np.nan
        with pytest.raises(NonFiniteLossInput, match=f"at position {np.flatnonzero(weights)[-1]};"):
            check_datum(datum(tokens.tolist(), target_tokens=targets, weights=weights, advantages=advantages))


def test_errors_can_be_caught_as_builtins() -> None:
    for error in (LengthMismatchError, TokenRangeError, NonFiniteLossInput, AlignmentError, EmptyLossError):
        assert issubclass(error, ValueError)
        assert issubclass(error, LossbookError)
    assert issubclass(DtypeError, TypeError)
