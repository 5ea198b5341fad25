"""Checking many datums together gives the same errors as checking each of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossbook.datums import Datum, ModelInput, TensorData, check_datum, check_datums
from lossbook.datums.checks.screening import suspects
from lossbook.datums.errors import LossbookError
from lossbook.datums.types import EncodedTextChunk

VOCABULARY = 10


def plain() -> Datum:
    return Datum(
        ModelInput.from_ints([1, 2, 3]),
        {"target_tokens": [2, 3, 4], "weights": [0.0, 1.0, 0.5], "advantages": [1.0, -1.0, 0.0], "reward": 2.0},
    )


def several_targets() -> Datum:
    return Datum(ModelInput.from_ints([1, 2]), {"target_tokens": [[1, 2], [3, 4]], "weights": [[1.0, 0.0], [0.0, 1.0]]})


def candidates() -> Datum:
    teacher = [[-0.5, -math.inf], [-1.0, -2.0]]
    return Datum(
        ModelInput.from_ints([1, 2]),
        {"target_tokens": [[1, 2], [3, 4]], "weights": [1.0, 0.0], "teacher_logprobs": teacher},
    )


def chunks() -> Datum:
    return Datum(ModelInput.from_ints([1, 2]).append_int(3), {})


GOOD: list[Callable[[], Datum]] = [plain, several_targets, candidates, chunks]


def with_input(**inputs: Any) -> Callable[[Datum], Datum]:
    return lambda datum: Datum(datum.model_input, {**datum.loss_fn_inputs, **inputs})


def with_number(key: str, place: int, number: float) -> Callable[[Datum], Datum]:
    def changed(datum: Datum) -> Datum:
        if key not in datum.loss_fn_inputs or not datum.loss_fn_inputs[key].to_numpy().size:
            return datum
        array = datum.loss_fn_inputs[key].to_numpy().copy()
        array.reshape(-1)[place % array.size] = number
        return Datum(datum.model_input, {**datum.loss_fn_inputs, key: array})

    return changed


def with_tokens(*tokens: Any) -> Callable[[Datum], Datum]:
    return lambda datum: Datum(ModelInput([EncodedTextChunk(list(tokens))]), datum.loss_fn_inputs)


SPARSE = TensorData([3, -1], "int64", [2, 2], sparse_crow_indices=[0, 1, 2], sparse_col_indices=[0, 1])
CHANGES = st.one_of(
    st.builds(
        with_number,
        st.sampled_from(["weights", "advantages", "reward", "teacher_logprobs"]),
        st.integers(0, 5),
        st.sampled_from([math.nan, math.inf, -math.inf, -1.0]),
    ),
    st.builds(with_number, st.just("target_tokens"), st.integers(0, 5), st.sampled_from([-100, -1, 9, 10, 10**12])),
    st.sampled_from(
        [
            with_input(weights=[1.0, 1.0]),
            with_input(weights=1.0),
            with_input(weights=[1.0, 1.0, 1.0, 1.0]),
            with_input(advantages=[1.0, 2.0]),
            with_input(reward=math.nan),
            with_input(labels=[0, 1, 0]),
            with_input(target_tokens=[1, 2]),
            with_input(target_tokens=SPARSE),
            with_input(target_tokens=np.zeros((3, 0), dtype=np.int64)),
            with_input(target_tokens=np.zeros((3, 1, 1), dtype=np.int64)),
            with_input(target_tokens=3),
            with_tokens(1, 2, 3),
            with_tokens(1, 2.5, 3),
            with_tokens(1, -2, 3),
            with_tokens(1, 2, 10),
            with_tokens(True, False),
            with_tokens("a", 2),
            with_tokens([1, 2], [3, 4]),
            with_tokens(1, 2**70),
            with_tokens(),
        ]
    ),
)


def verdict(check: Callable[[], Any]) -> str:
    try:
        check()
    except LossbookError as error:
        return f"{type(error).__name__}: {error}"
    return "all are good"


def one_by_one(datums: list[Datum], **options: Any) -> None:
    for index, datum in enumerate(datums):
        check_datum(datum, index, len(datums), **options)


@given(
    made=st.lists(st.tuples(st.sampled_from(GOOD), st.lists(CHANGES, max_size=2)), min_size=1, max_size=4),
    vocab_size=st.sampled_from([None, VOCABULARY]),
    masked_targets=st.booleans(),
)
def test_checking_many_datums_gives_the_same_error_as_checking_each(
    made: Any, vocab_size: Any, masked_targets: bool
) -> None:
    datums = []
    for base, changes in made:
        datum = base()
        for change in changes:
            datum = change(datum)
        datums.append(datum)
    options = {"vocab_size": vocab_size, "masked_targets": masked_targets}
    assert verdict(lambda: check_datums(datums, **options)) == verdict(lambda: one_by_one(datums, **options))


@pytest.mark.parametrize("good", GOOD)
def test_a_good_datum_is_no_suspect(good: Callable[[], Datum]) -> None:
    assert suspects([good(), good()], VOCABULARY) == []
    assert suspects([make() for make in GOOD], VOCABULARY) == []


def test_a_wrong_datum_is_the_only_suspect() -> None:
    wrong = with_number("weights", 1, math.nan)(plain())
    assert suspects([plain(), wrong, candidates()], VOCABULARY) == [1]
    assert suspects([plain(), with_tokens(1, 2, 10)(plain())], VOCABULARY) == [1]
    assert suspects([with_input(advantages=[1.0])(plain()), plain()], VOCABULARY) == [0]
    assert suspects([plain(), with_tokens()(plain())], None) == [1]
