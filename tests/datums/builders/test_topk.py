"""datum_from_teacher_topk: a teacher's candidates and their log-probabilities, shifted with the tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from lossbook import Datum, ModelInput, datum_from_teacher_topk, get_loss
from lossbook.datums import check_datum
from lossbook.datums.errors import (
    InvalidLogprobError,
    LengthMismatchError,
    MissingInput,
    NonFiniteLossInput,
    ShapeError,
    TokenRangeError,
    UnknownInput,
)

NEVER = -math.inf


def inputs(datum: Datum) -> dict[str, Any]:
    return {key: value.tolist() for key, value in datum.loss_fn_inputs.items()}


def test_rows_are_about_the_tokens_after_the_first_and_weights_are_one_per_row() -> None:
    datum = datum_from_teacher_topk([5, 6, 7], [[6, 1], [7, 2]], [[-0.5, -1.0], [-0.25, -2.0]], [0.0, 2.0])
    assert datum.model_input.to_ints() == [5, 6]
    assert inputs(datum) == {
        "target_tokens": [[6, 1], [7, 2]],
        "teacher_logprobs": [[-0.5, -1.0], [-0.25, -2.0]],
        "weights": [0.0, 2.0],
    }
    get_loss("topk_forward_kl").check([datum])


@pytest.mark.parametrize(
    ("tokens", "logprobs"),
    [
        pytest.param([[6, 1], [7, 0], [0, 0]], [[-0.5, -1.0], [-0.25, NEVER], [NEVER, NEVER]], id="-inf"),
        pytest.param([[6, 1], [7, 300], [-1, -1]], [[-0.5, -1.0], [-0.25, NEVER], [NEVER, NEVER]], id="odd ids"),
        pytest.param([[6, 1], [7], []], [[-0.5, -1.0], [-0.25], []], id="shorter rows"),
        pytest.param([[6, 1], [7], None], [[-0.5, -1.0], [-0.25], None], id="None for a row"),
        pytest.param([[6, 1], [7, None], None], [[-0.5, -1.0], [-0.25, None], None], id="None for a candidate"),
        pytest.param(
            np.array([[6, 1], [7, 7], [3, 3]]),
            torch.tensor([[-0.5, -1.0], [-0.25, NEVER], [NEVER, NEVER]]),
            id="arrays, an absent candidate may repeat",
        ),
    ],
)
def test_absent_candidates_are_token_0_of_logprob_minus_infinity(tokens: Any, logprobs: Any) -> None:
    assert inputs(datum_from_teacher_topk([5, 6, 7, 8], tokens, logprobs)) == {
        "target_tokens": [[6, 1], [7, 0], [0, 0]],
        "teacher_logprobs": [[-0.5, -1.0], [-0.25, NEVER], [NEVER, NEVER]],
        "weights": [1.0, 1.0, 0.0],
    }


def test_rows_are_truncated_with_their_tokens() -> None:
    rows = [[[6], [7], [8]], [[-1.0], [-2.0], [-3.0]], [1.0, 2.0, 3.0]]
    datum = datum_from_teacher_topk([5, 6, 7, 8], *rows, max_length=3, truncation="left")
    assert datum.model_input.to_ints() == [6, 7]
    assert inputs(datum) == {"target_tokens": [[7], [8]], "teacher_logprobs": [[-2.0], [-3.0]], "weights": [2.0, 3.0]}


@pytest.mark.parametrize(
    ("tokens", "logprobs", "weights", "error", "message"),
    [
        ([[3, 3]], [[-1.0, -2.0]], None, UnknownInput, "holds id 3 more than once in row 0. A top K has no duplicates"),
        ([[3, 4]], [[-0.5, -0.8]], None, InvalidLogprobError, "row 0 of topk_logprobs add up to 1.056, more than 1"),
        ([[3, 4]], [[0.75, 0.25]], None, InvalidLogprobError, "is 0.75 in row 0, column 0.*Are these probabilities"),
        (
            [[3, 4]],
            [[-1.0, math.nan]],
            None,
            NonFiniteLossInput,
            "is nan in row 0, column 1; an absent candidate is -inf",
        ),
        ([[3, 4]], [[NEVER, NEVER]], [0.5], MissingInput, "row 0 of topk_tokens has the weight 0.5 and no candidate"),
        ([[3, 4]], [[-1.0]], None, LengthMismatchError, r"topk_logprobs has shape \[1, 1\], topk_tokens \[1, 2\]"),
        (
            [[3, 4], [3]],
            [[-1.0, -2.0], []],
            None,
            LengthMismatchError,
            "row 1 of topk_tokens and topk_logprobs differs in length: 1 and 0 entries",
        ),
        ([[3], []], [[-1.0]], None, LengthMismatchError, "as many rows as each other, not 2 and 1"),
        ([[3, 4], [5, 6]], [[-1.0, -2.0]] * 2, None, LengthMismatchError, r"pass rows \[:-1\]"),
        ([3, 4], [-1.0, -2.0], None, ShapeError, r"topk_tokens must be \[N, K\], N = 1, not \[2\]"),
        ([[3, 4]], [[-1.0, -2.0]], [1.0, 1.0], LengthMismatchError, "weights has 2 entries for 1 rows of topk_tokens"),
        ([[-3, 4]], [[-1.0, -2.0]], None, TokenRangeError, "target_tokens holds -3 at position 0, column 0"),
    ],
)
def test_invalid_candidates_of_a_teacher_are_refused(
    tokens: Any, logprobs: Any, weights: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        datum_from_teacher_topk([5, 6], tokens, logprobs, weights)


def test_probabilities_may_add_up_to_a_little_more_than_one() -> None:
    datum_from_teacher_topk([5, 6], [[3, 4]], [[math.log(0.76), math.log(0.25)]])


def by_hand(**changed: Any) -> Datum:
    made = {"target_tokens": [[3, 4], [5, 6]], "teacher_logprobs": [[-1.0, NEVER], [-1.0, -1.0]], "weights": [1.0, 0.0]}
    return Datum(ModelInput.from_ints([1, 2]), {**made, **changed})


def test_one_weight_for_all_candidates_of_a_position_is_valid_data() -> None:
    check_datum(by_hand())
    check_datum(by_hand(target_tokens=[[3, 4], [999, 6]]), vocab_size=10)  # of weight 0


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"target_tokens": [[3, 999], [5, 6]]}, TokenRangeError, "target_tokens holds 999 at position 0, column 1"),
        ({"teacher_logprobs": [[-1.0, math.inf], [-1.0, -1.0]]}, NonFiniteLossInput, "is inf at position 0, column 1"),
        ({"teacher_logprobs": [-1.0, -1.0]}, LengthMismatchError, r"weights needs N\*K = 4 values in row-major order"),
        ({"weights": [1.0, 0.0, 1.0]}, LengthMismatchError, "weights has 3 entries"),
    ],
)
def test_invalid_data_about_candidates_is_refused(changed: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_datum(by_hand(**changed), vocab_size=10)
