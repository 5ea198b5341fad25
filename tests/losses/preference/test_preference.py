"""What is particular to preference losses: the margin, its sign, and pairs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import Datum, get_loss
from lossbook.datums.errors import AlignmentError, MissingInput, ShapeError

from ..cases import assert_rows_equal, datum, evaluated

#: beta Δ = Δ, so that the numbers below are the textbook ones.
UNSCALED = get_loss("dpo", beta=1.0)


def pair(reference: float = -1.0) -> list[Datum]:
    """Chosen and rejected of one position each, so that the margin is the difference of two logprobs."""
    return [datum(1, weights=[1], ref_logprobs=[reference])] * 2


def loss_at(margin: float) -> float:
    rows = [[0.0], [-margin]] if margin >= 0 else [[margin], [0.0]]
    return evaluated(UNSCALED, pair(), rows)[0]


@pytest.mark.parametrize(
    ("chosen", "rejected", "loss", "slope"),
    [
        pytest.param(-2.0, -2.0, math.log(2), -0.5, id="no margin: ln 2, pushed apart at half speed"),
        pytest.param(-1.0, -3.0, math.log1p(math.exp(-2)), -1 / (1 + math.exp(2)), id="won by two nats: little left"),
        pytest.param(-3.0, -1.0, 2 + math.log1p(math.exp(-2)), -1 / (1 + math.exp(-2)), id="lost: nearly full speed"),
    ],
)
def test_dpo_pushes_a_pair_apart_by_how_wrong_it_is(chosen: float, rejected: float, loss: float, slope: float) -> None:
    value, gradients, metrics = evaluated(UNSCALED, pair(), [[chosen], [rejected]])
    assert value == pytest.approx(loss)
    assert_rows_equal(gradients, [[slope], [-slope]], 1e-12)
    assert metrics["margin"] == chosen - rejected
    assert metrics["accuracy"] == (chosen > rejected)


@given(margin=st.floats(-30, 30))
@settings(max_examples=50)
def test_swapping_a_pair_negates_the_margin_and_costs_just_that(margin: float) -> None:
    # -log σ(m) + log σ(-m) = -m
    assert loss_at(margin) - loss_at(-margin) == pytest.approx(-margin, abs=1e-12)


@given(rows=st.lists(st.floats(-8, 0, width=32), min_size=2, max_size=6), beta=st.floats(0.01, 5))
@settings(max_examples=50)
def test_while_policy_and_reference_agree_the_loss_is_ln_2(rows: list[float], beta: float) -> None:
    data = [datum(len(rows), weights=[1] * len(rows), ref_logprobs=rows)] * 2
    value, gradients, metrics = evaluated(get_loss("dpo", beta=beta), data, [rows, rows])
    assert value == pytest.approx(math.log(2), abs=1e-12)
    assert_rows_equal(gradients, [[-beta / 2] * len(rows), [beta / 2] * len(rows)], 1e-12)
    assert metrics["margin"] == 0


@pytest.mark.parametrize("margin", [1e4, -1e4], ids=["won by 10,000 nats", "lost by 10,000 nats"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_huge_margin_is_finite_in_value_and_gradient(margin: float, dtype: torch.dtype) -> None:
    rows = [torch.tensor([min(margin, 0.0)], dtype=dtype), torch.tensor([min(-margin, 0.0)], dtype=dtype)]
    leaves = [row.requires_grad_() for row in rows]
    value, _ = UNSCALED(pair(), leaves)
    gradients = torch.autograd.grad(value, leaves)
    assert float(value.detach()) == (0.0 if margin > 0 else 1e4)
    assert [float(g) for g in gradients] == ([0.0, 0.0] if margin > 0 else [-1.0, 1.0])


def test_label_smoothing_gives_a_share_of_the_loss_to_the_other_order() -> None:
    smoothed = evaluated(get_loss("dpo", beta=1.0, label_smoothing=0.25), pair(), [[-1.0], [-3.0]])[0]
    assert smoothed == pytest.approx(0.75 * loss_at(2.0) + 0.25 * loss_at(-2.0))


def test_a_shared_prefix_cancels() -> None:
    # One prompt before both responses: its positions weigh the same and say the same on both sides.
    def both(prefix: float) -> float:
        data = [datum(2, weights=[1, 1], ref_logprobs=[-1.0, -1.0])] * 2
        return evaluated(UNSCALED, data, [[prefix, -0.5], [prefix, -2.5]])[0]

    assert both(-0.25) == pytest.approx(both(-7.5), abs=1e-12)


def test_weights_multiply_tokens_before_the_margin_is_taken() -> None:
    data = [datum(2, weights=[1, 0.5], ref_logprobs=[0.0, 0.0]), datum(1, weights=[2], ref_logprobs=[0.0])]
    value, gradients, metrics = evaluated(UNSCALED, data, [[-1.0, -1.0], [-1.0]])
    assert metrics["margin"] == 0.5
    assert value == pytest.approx(loss_at(0.5))
    slope = -1 / (1 + math.exp(0.5))
    assert_rows_equal(gradients, [[slope, slope / 2], [-2 * slope]], 1e-12)


def test_the_mean_is_over_pairs_and_the_sum_over_them() -> None:
    rows = [[-1.0], [-3.0], [-3.0], [-1.0]]
    expected = loss_at(2.0) + loss_at(-2.0)
    for reduction, value in (("pair-mean", expected / 2), ("mean", expected / 2), ("sum", expected)):
        loss_value = evaluated(get_loss("dpo", beta=1.0, reduction=reduction), pair() * 2, rows)[0]
        assert loss_value == pytest.approx(value), reduction


def test_a_pair_masked_on_both_sides_is_dropped_from_the_mean() -> None:
    masked = [datum(1, weights=[0], ref_logprobs=[float("nan")])] * 2
    rows = [[float("nan")], [float("nan")], [-1.0], [-3.0]]
    value, gradients, _ = evaluated(UNSCALED, masked + pair(), rows)
    assert value == pytest.approx(loss_at(2.0))
    assert [float(g) for g in gradients[:2]] == [0.0, 0.0]


@pytest.mark.parametrize(("first", "partner"), [(2, 3), (3, 2)], ids=["chosen", "rejected"])
def test_a_pair_masked_on_one_side_is_an_error_that_names_the_datum(first: int, partner: int) -> None:
    data = [datum(1, weights=[0 if i == first else 1], ref_logprobs=[-1.0]) for i in range(4)]
    with pytest.raises(AlignmentError) as caught:
        get_loss("dpo").check(data)
    assert str(caught.value) == (
        f"datum {first} of 4 has no position of non-zero weight while its partner {partner} has: the pair cannot be "
        "compared. Was its response truncated away?"
    )


def test_an_odd_number_of_datums_is_no_set_of_pairs() -> None:
    with pytest.raises(ShapeError) as caught:
        get_loss("dpo").check(pair() + pair()[:1])
    assert str(caught.value) == "pairs are datums 2i (chosen) and 2i+1 (rejected), but there are 3 datums"


def test_dpo_without_reference_logprobs_says_so() -> None:
    with pytest.raises(MissingInput, match=r"^dpo reads 'ref_logprobs', which datum 1 of 2 does not carry"):
        get_loss("dpo").check([pair()[0], datum(1, weights=[1])])
