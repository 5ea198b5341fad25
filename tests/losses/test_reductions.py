"""What is added up and what it is divided by: denominators from data alone, shares that add up."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossbook import Datum, get_loss, stats
from lossbook.datums.errors import EmptyLossError, WeightsError
from lossbook.losses import REDUCTIONS, Count, PerDatum

from .cases import assert_rows_equal, datum, evaluated, loss_of

#: prompt-mean reads one key more: test_prompt_mean.py
TOKEN_REDUCTIONS = [reduction for reduction in REDUCTIONS["token"] if reduction != "prompt-mean"]
weight = st.sampled_from([0.0, 0.5, 1.0, 2.0])


def cross_entropy(reduction: str) -> Any:
    norm = {"norm_length": 4} if reduction == "seq-mean-token-sum-norm" else {}
    return get_loss("cross_entropy", reduction=reduction, **norm)


@st.composite
def weighed(draw: st.DrawFn) -> tuple[list[Datum], list[list[float]]]:
    """Two to five datums with weights, the first not masked, and their logprobs."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    data, rows = [], []
    for i, n in enumerate(lengths):
        weights = draw(st.lists(weight, min_size=n, max_size=n))
        data.append(datum(n, weights=[1.0, *weights[1:]] if i == 0 else weights))
        rows.append(draw(st.lists(st.floats(-8, 0), min_size=n, max_size=n)))
    return data, rows


@pytest.mark.parametrize("reduction", TOKEN_REDUCTIONS)
@given(drawn=weighed(), cut=st.integers(1, 4))
@settings(max_examples=20)
def test_totals_and_denominators_of_parts_add_up_to_the_whole(
    reduction: str, drawn: tuple[list[Datum], list[list[float]]], cut: int
) -> None:
    data, rows = drawn
    loss = cross_entropy(reduction)
    outputs = [torch.tensor(row, dtype=torch.float64) for row in rows]
    whole, metrics = loss.terms(data, outputs)
    parts = [loss.terms(data[:cut], outputs[:cut]), loss.terms(data[cut:], outputs[cut:])]
    assert float(parts[0][0] + parts[1][0]) == pytest.approx(float(whole), abs=1e-9)
    assert sum(loss.count(part) for part in (data[:cut], data[cut:])) == loss.check(data) == loss.count(data)
    merged = stats.merge(part for _, part in parts)
    assert stats.values(merged) == pytest.approx(stats.values(metrics), abs=1e-9)


@pytest.mark.parametrize("reduction", TOKEN_REDUCTIONS)
@given(drawn=weighed(), data=st.data())
@settings(max_examples=15)
def test_neither_order_nor_masked_datums_change_anything(
    reduction: str, drawn: tuple[list[Datum], list[list[float]]], data: st.DataObject
) -> None:
    datums, rows = drawn
    loss = cross_entropy(reduction)
    value, gradients, metrics = evaluated(loss, datums, rows)
    order = data.draw(st.permutations(range(len(datums))))
    masked = datum(2, weights=[0, 0])
    again, moved, same = evaluated(
        loss, [*(datums[i] for i in order), masked], [*(rows[i] for i in order), [math.nan, -math.inf]]
    )
    assert again == pytest.approx(value, abs=1e-12)
    assert_rows_equal(moved, [*(gradients[i] for i in order), [0.0, 0.0]], 1e-12)
    assert same == pytest.approx(metrics)


@pytest.mark.parametrize(
    ("reduction", "power"),
    [
        pytest.param("sum", 1, id="sum: in proportion"),
        pytest.param("token-mean", 0, id="token-mean: not at all"),
        pytest.param("seq-mean-token-mean", 0, id="seq-mean-token-mean: not at all"),
        pytest.param("seq-mean-token-sum", 1, id="seq-mean-token-sum: in proportion"),
        pytest.param("seq-mean-token-sum-norm", 1, id="seq-mean-token-sum-norm: in proportion"),
    ],
)
@given(rows=st.lists(st.lists(st.floats(-8, 0), min_size=3, max_size=3), min_size=2, max_size=2))
@settings(max_examples=15)
def test_how_doubling_all_weights_changes_the_loss(reduction: str, power: int, rows: list[list[float]]) -> None:
    once = evaluated(cross_entropy(reduction), [datum(weights=[0, 1, 0.5]), datum(weights=[1, 1, 0])], rows)
    twice = evaluated(cross_entropy(reduction), [datum(weights=[0, 2, 1]), datum(weights=[2, 2, 0])], rows)
    assert twice[0] == pytest.approx(2**power * once[0], abs=1e-12)
    assert_rows_equal(twice[1], [2**power * g for g in once[1]], 1e-12)


@pytest.mark.parametrize(
    ("reduction", "count"),
    [
        pytest.param("sum", 1.0, id="sum: nothing to divide by"),
        pytest.param("token-mean", 3.5, id="token-mean: the sum of weights"),
        pytest.param("seq-mean-token-mean", 2.0, id="seq-mean-token-mean: the datums that have a weight"),
        pytest.param("seq-mean-token-sum", 2.0, id="seq-mean-token-sum: the datums that have a weight"),
        pytest.param("seq-mean-token-sum-norm", 8.0, id="seq-mean-token-sum-norm: those times norm_length"),
    ],
)
def test_the_denominator_comes_from_the_weights(reduction: str, count: float) -> None:
    data = [datum(weights=[0, 1, 0.5]), datum(weights=[0, 0, 0]), datum(weights=[2, 0, 0])]
    assert float(cross_entropy(reduction).check(data)) == count


def test_the_denominators_of_losses_per_datum_and_per_pair_are_datums_and_pairs() -> None:
    def per_datum(logprobs: Tensor, label: PerDatum, seqs: Any) -> Tensor:
        return label * seqs.sum(logprobs)

    data = [datum(weights=[0, 1, 1], label=1, ref_logprobs=[-1.0] * 3)] * 4
    assert float(loss_of(per_datum, per="datum").check(data)) == 4
    assert float(get_loss("dpo").check(data)) == 2
    value, _, _ = evaluated(loss_of(per_datum, per="datum"), data, [[-9.0, -1.0, -2.0]] * 4)
    assert value == -3


def test_the_denominators_of_several_targets_count_every_weight() -> None:
    data = [datum([[1, 2], [3, 4]], weights=[[0.5, 0.25], [0, 0]])]
    assert float(cross_entropy("token-mean").check(data)) == 0.75
    value, _, _ = evaluated(cross_entropy("seq-mean-token-mean"), data, [[[-1.0, -3.0], [0.0, 0.0]]])
    assert value == pytest.approx((0.5 * 1 + 0.25 * 3) / 0.75)


@pytest.mark.parametrize("reduction", TOKEN_REDUCTIONS)
@given(drawn=weighed())
@settings(max_examples=10)
def test_a_loss_that_weighs_its_tokens_itself_is_reduced_the_same(
    reduction: str, drawn: tuple[list[Datum], list[list[float]]]
) -> None:
    def weighs(logprobs: Tensor, weights: Tensor) -> Tensor:
        return -weights * logprobs

    data, rows = drawn
    data, rows = [*data, datum(2, weights=[0, 0])], [*rows, [-1.0, -1.0]]
    norm = {"norm_length": 4} if reduction == "seq-mean-token-sum-norm" else {}
    value, gradients, _ = evaluated(loss_of(weighs, config={"reduction": reduction, **norm}), data, rows)
    expected, slopes, _ = evaluated(cross_entropy(reduction), data, rows)
    assert value == pytest.approx(expected, abs=1e-12)
    assert_rows_equal(gradients, slopes, 1e-12)


@pytest.mark.parametrize("reduction", [r for r in TOKEN_REDUCTIONS if r != "sum"])
def test_a_loss_that_weighs_its_tokens_itself_needs_a_weight_too(reduction: str) -> None:
    def weighs(logprobs: Tensor, weights: Tensor) -> Tensor:
        return -weights * logprobs

    norm = {"norm_length": 4} if reduction == "seq-mean-token-sum-norm" else {}
    loss = loss_of(weighs, config={"reduction": reduction, **norm})
    with pytest.raises(EmptyLossError, match=f"^weighs: reduction '{reduction}' has nothing to divide by$"):
        loss.check([datum(2, weights=[0, 0])])


@pytest.mark.parametrize("reduction", [r for r in TOKEN_REDUCTIONS if r != "sum"])
def test_a_mean_refuses_negative_weights_and_names_the_datum(reduction: str) -> None:
    data = [datum(weights=[1, 1, 1]), datum(weights=[0, 0, 0]), datum(weights=[1, -1, 0])]
    with pytest.raises(WeightsError) as caught:
        cross_entropy(reduction).check(data)
    assert str(caught.value) == (
        f"cross_entropy: datum 2 has negative weights, which reduction {reduction!r} cannot divide by. "
        "Use reduction 'sum', which takes any real weights"
    )


@pytest.mark.parametrize("weights", [[1, -1, 0], [-1, -1, -1]], ids=["adding up to zero", "all negative"])
def test_a_sum_takes_any_real_weights(weights: list[float]) -> None:
    value, gradients, _ = evaluated(cross_entropy("sum"), [datum(weights=weights)], [[-1.0, -2.0, -4.0]])
    assert value == sum(w * x for w, x in zip(weights, [1, 2, 4], strict=True))
    assert_rows_equal(gradients, [[-w for w in weights]], 0)


@pytest.mark.parametrize("reduction", TOKEN_REDUCTIONS)
def test_weights_that_are_all_zero_leave_nothing_to_train_on(reduction: str) -> None:
    with pytest.raises(EmptyLossError) as caught:
        cross_entropy(reduction).check([datum(weights=[0, 0, 0])] * 2)
    assert str(caught.value) == (
        "cross_entropy: every weight of all 2 datums is 0, so there is nothing to train on. Was the response truncated "
        "away, or the mask made for another chat template?"
    )


def test_counts_add_up_and_divide_term_by_term() -> None:
    mixed = Count((4.0, None)) + Count((2.0, None))
    assert mixed == Count((6.0, None))
    assert sum([Count((1.0,)), Count((2.0,))]) == Count((3.0,))
    assert float(torch.tensor([12.0, 5.0]) / mixed) == 12 / 6 + 5
    assert float(torch.tensor(12.0) / Count((4.0,))) == 3
    assert float(torch.tensor(12.0) / (Count((None,)) + Count((None,)))) == 12
    assert Count((None, 1.0)) + Count((2.0, 3.0)) == Count((2.0, 1.0)) + Count((None, 3.0)) == Count((None, 4.0))
    assert [Count((0.0, 1.0)).is_zero, Count((None,)).is_zero] == [True, False]
    assert [float(Count((3.0,))), float(Count((None,)))] == [3, 1]


def test_counts_of_different_losses_do_not_add_up() -> None:
    with pytest.raises(TypeError):
        Count((1.0,)) + Count((1.0, 2.0))
    with pytest.raises(TypeError, match=r"^a mixture has one denominator per part: \(1\.0, 2\.0\)$"):
        float(Count((1.0, 2.0)))
