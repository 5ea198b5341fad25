"""What is particular to cross-entropy: weights as they are, and several targets a position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import get_loss

from ..cases import assert_rows_equal, datum, evaluated

logprobs = st.floats(-8, 0)
weights = st.floats(0.125, 4, width=32) | st.just(0.0)


def table(of: st.SearchStrategy[float]) -> st.SearchStrategy[list[list[float]]]:
    """[3, 4] numbers."""
    return st.lists(st.lists(of, min_size=4, max_size=4), min_size=3, max_size=3)


@pytest.mark.parametrize(
    ("weight", "loss", "gradient"),
    [
        pytest.param(1.0, 2.0, -1.0, id="a label: made likelier"),
        pytest.param(0.25, 0.5, -0.25, id="a quarter of a label: a fourth of the push"),
        pytest.param(0.0, 0.0, 0.0, id="a prompt token: nothing"),
        pytest.param(-1.0, -2.0, 1.0, id="a negative weight: made less likely"),
    ],
)
def test_a_token_of_two_nats_is_pushed_by_its_weight(weight: float, loss: float, gradient: float) -> None:
    data = [datum(2, weights=[1, weight])]
    value, gradients, _ = evaluated(get_loss("cross_entropy"), data, [[0.0, -2.0]])
    assert value == loss
    assert_rows_equal(gradients, [[-1.0, gradient]], 0)


@given(rows=table(logprobs), weighed=table(weights), order=st.permutations(range(4)))
@settings(max_examples=30)
def test_the_order_of_the_k_targets_does_not_matter(
    rows: list[list[float]], weighed: list[list[float]], order: list[int]
) -> None:
    weighed[0][0] = 1.0

    def shuffled(table: list[Any]) -> list[list[Any]]:
        return [[row[i] for i in order] for row in table]

    targets = [[1, 2, 3, 4]] * 3
    loss = get_loss("cross_entropy")
    value, gradients, _ = evaluated(loss, [datum(targets, weights=weighed)], [rows])
    again, moved, _ = evaluated(loss, [datum(shuffled(targets), weights=shuffled(weighed))], [shuffled(rows)])
    assert again == pytest.approx(value, abs=1e-9)
    assert_rows_equal(moved, [gradients[0][:, order]], 0)


@pytest.mark.parametrize("reduction", ["sum", "token-mean", "seq-mean-token-mean"])
@given(rows=table(logprobs), weighed=table(weights))
@settings(max_examples=15)
def test_one_target_a_position_is_plain_cross_entropy(
    reduction: str, rows: list[list[float]], weighed: list[list[float]]
) -> None:
    weighed[0][0] = 1.0
    loss = get_loss("cross_entropy", reduction=reduction)
    plain, slopes, _ = evaluated(loss, [datum(4, weights=w) for w in weighed], rows)
    columns = [[[x] for x in row] for row in rows]
    wide = [datum([[t] for t in range(4)], weights=[[x] for x in w]) for w in weighed]
    value, gradients, _ = evaluated(loss, wide, columns)
    assert value == pytest.approx(plain, abs=1e-12)
    assert_rows_equal([g[:, 0] for g in gradients], slopes, 1e-15)


def test_a_soft_label_is_not_renormalised() -> None:
    # .5 and .25 of a label stay what they are: the rest of the distribution was cut off, not redistributed.
    data = [datum([[1, 2]], weights=[[0.5, 0.25]])]
    value, gradients, _ = evaluated(get_loss("cross_entropy"), data, [[[-1.0, -2.0]]])
    assert value == 1.0
    assert_rows_equal(gradients, [[[-0.5, -0.25]]], 0)


@given(rows=table(logprobs), factor=st.sampled_from([-2.0, -0.5, 0.25, 4.0]))
@settings(max_examples=15)
def test_the_sum_is_linear_in_the_weights(rows: list[list[float]], factor: float) -> None:
    loss = get_loss("cross_entropy")
    once, slopes, _ = evaluated(loss, [datum(4, weights=[1, 0.5, 2, 0])] * 3, rows)
    scaled, gradients, _ = evaluated(loss, [datum(4, weights=[factor, factor / 2, factor * 2, 0])] * 3, rows)
    assert scaled == factor * once  # exactly: the factors are powers of two
    assert_rows_equal(gradients, [factor * slope for slope in slopes], 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_logprobs_are_added_up_in_float32(dtype: torch.dtype) -> None:
    # In bfloat16 the sum would stand still at 512.
    value, metrics = get_loss("cross_entropy")([datum(2000)], [torch.full((2000,), -1.0, dtype=dtype)])
    assert value.dtype == torch.float32
    assert float(value) == 2000
    assert metrics["nll"] == 1
