"""The Bradley-Terry loss of a reward model, in numbers to be redone on paper."""

from __future__ import annotations

import math

import pytest

from lossbook import Datum, get_loss

from ..cases import assert_rows_equal, datum, evaluated
from .preference_pairs import sigmoid, softplus


def pair(**inputs: float) -> list[Datum]:
    return [datum(1, weights=[1], **inputs)] * 2


@pytest.mark.parametrize(
    ("chosen", "rejected", "value", "slope"),
    [
        pytest.param(3.0, 3.0, math.log(2), -0.5, id="level"),
        pytest.param(2.0, -1.0, softplus(-3), -sigmoid(-3), id="ahead by three"),
        pytest.param(-1.0, 2.0, softplus(3), -sigmoid(3), id="behind by three"),
    ],
)
def test_only_the_difference_of_the_scores_matters(chosen: float, rejected: float, value: float, slope: float) -> None:
    for shift in (0.0, 100.0):
        rows = [[chosen + shift], [rejected + shift]]
        loss_value, gradients, metrics = evaluated(get_loss("reward_bt"), pair(), rows)
        assert loss_value == pytest.approx(value, rel=1e-12)
        assert_rows_equal(gradients, [[slope], [-slope]], 1e-12)
        assert metrics["margin"] == chosen - rejected
        assert metrics["accuracy"] == (chosen > rejected)
        assert metrics["chosen_reward"] == chosen + shift
        assert metrics["score_min"] == min(chosen, rejected) + shift
        assert metrics["score_max"] == max(chosen, rejected) + shift


def test_a_score_is_the_value_at_the_last_token_of_non_zero_weight() -> None:
    data = [datum(4, weights=[1, 1, 0.5, 0]), datum(3, weights=[0, 1, 0])]
    value, gradients, _ = evaluated(get_loss("reward_bt"), data, [[9.0, 9.0, 1.0, 7.0], [5.0, 0.0, 5.0]])
    assert value == pytest.approx(softplus(-1))
    slope = -sigmoid(-1)
    assert_rows_equal(gradients, [[0, 0, slope, 0], [0, -slope, 0]], 1e-12)


def test_a_margin_is_the_chosen_datums() -> None:
    data = [datum(1, weights=[1], margin=0.5), datum(1, weights=[1], margin=9.0)]
    value, gradients, metrics = evaluated(get_loss("bradley_terry"), data, [[1.0], [0.0]])
    assert value == pytest.approx(softplus(-0.5))
    assert_rows_equal(gradients, [[-sigmoid(-0.5)], [sigmoid(-0.5)]], 1e-12)
    assert metrics["margin"] == 1.0


def test_centring_draws_the_sum_of_a_pairs_scores_to_0() -> None:
    value, gradients, _ = evaluated(get_loss("reward_bt", center_coefficient=0.5), pair(), [[3.0], [1.0]])
    assert value == pytest.approx(softplus(-2) + 8.0)
    assert_rows_equal(gradients, [[4 - sigmoid(-2)], [4 + sigmoid(-2)]], 1e-12)
    centred, _, _ = evaluated(get_loss("reward_bt", center_coefficient=0.5), pair(), [[1.0], [-1.0]])
    assert centred == pytest.approx(softplus(-2))
