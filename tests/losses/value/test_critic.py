"""Losses of a value function: one token's loss and gradient, worked by hand, also exactly at the bounds and at ties."""

from __future__ import annotations

from typing import Any

import pytest

from lossbook import get_loss
from lossbook.datums.errors import LossConfigError, MissingInput

from ..cases import assert_rows_equal, datum, evaluated


@pytest.mark.parametrize(
    ("value", "target", "loss", "gradient", "clipped"),
    [
        # old value 1, clip .25: the clamped value lies in [.75, 1.25]
        pytest.param(1.125, 2.0, 0.3828125, -0.875, 0, id="within the bounds: the plain square, ½ .875²"),
        pytest.param(1.5, 2.0, 0.28125, 0.0, 1, id="risen too far towards its target: ½ .75², held, no push"),
        pytest.param(0.5, 0.0, 0.28125, 0.0, 1, id="fallen too far towards its target: ½ .75², held, no push"),
        pytest.param(1.5, 1.0, 0.125, 0.5, 0, id="risen beyond its target: pulled back in full"),
        pytest.param(0.5, 1.0, 0.125, -0.5, 0, id="fallen beyond its target: pulled back in full"),
        pytest.param(1.25, 2.0, 0.28125, -0.75, 0, id="exactly at the upper bound: still pushed, in full"),
        pytest.param(0.75, 0.0, 0.28125, 0.75, 0, id="exactly at the lower bound: still pushed, in full"),
        pytest.param(2.0, 1.625, 0.0703125, 0.375, 0, id="both squares alike beyond the bound: the live one, in full"),
    ],
)
def test_a_value_is_held_near_the_old_one(
    value: float, target: float, loss: float, gradient: float, clipped: float
) -> None:
    data = [datum(1, weights=[1.0], old_values=[1.0], returns=[target])]
    loss_value, gradients, metrics = evaluated(get_loss("value_clip", clip=0.25), data, [[value]])
    assert loss_value == loss
    assert_rows_equal(gradients, [[gradient]], 0)
    assert metrics == {"clip_fraction": clipped, "squared_error": (value - target) ** 2}


@pytest.mark.parametrize(
    ("settings", "error", "loss", "gradient", "linear"),
    [
        pytest.param({}, 0.5, 0.125, 0.5, 0, id="a small error: half its square"),
        pytest.param({}, 1.0, 0.5, 1.0, 0, id="exactly delta: the square, for the last time"),
        pytest.param({}, 3.0, 2.5, 1.0, 1, id="a large error: linear"),
        pytest.param({}, -3.0, 2.5, -1.0, 1, id="a large error the other way"),
        pytest.param({"delta": 0.5}, 1.0, 0.375, 0.5, 1, id="another delta: .5 (1 - .25)"),
        pytest.param({"delta": 2.0}, -2.0, 2.0, -2.0, 0, id="exactly another delta, the other way"),
    ],
)
def test_huber_is_a_square_near_and_a_line_far_off(
    settings: dict[str, Any], error: float, loss: float, gradient: float, linear: float
) -> None:
    data = [datum(1, weights=[1.0], returns=[-1.0])]
    loss_value, gradients, metrics = evaluated(get_loss("value_huber", **settings), data, [[error - 1.0]])
    assert loss_value == loss
    assert_rows_equal(gradients, [[gradient]], 0)
    assert metrics == {"linear_fraction": linear}


def test_half_the_square_has_the_error_as_its_gradient() -> None:
    data = [datum(3, weights=[1, 0, 3], returns=[1.0, float("nan"), -1.0])]
    loss_value, gradients, _ = evaluated(get_loss("value_mse"), data, [[3.0, float("nan"), -2.0]])
    assert loss_value == (2.0 + 3 * 0.5) / 4
    assert_rows_equal(gradients, [[0.5, 0.0, -0.75]], 0)


def test_defaults_are_those_of_the_sources() -> None:
    assert get_loss("value_clip").settings == {"clip": 0.2}
    assert get_loss("value_huber").settings == {"delta": 1.0}
    assert get_loss("ppo_critic").name == "value_clip"
    for name, setting in (("value_clip", "clip"), ("value_huber", "delta")):
        with pytest.raises(LossConfigError, match=setting):
            get_loss(name, **{setting: 0.0})


def test_a_value_loss_says_which_input_is_missing() -> None:
    with pytest.raises(MissingInput, match=r"value_clip reads 'old_values', which datum 0 of 1 does not carry"):
        evaluated(get_loss("value_clip"), [datum(1, weights=[1.0], returns=[1.0])], [[0.0]])


def test_whole_numbers_are_values_too() -> None:
    data = [datum(2, weights=[1, 1], old_values=[1, 2], returns=[2, 3])]
    loss_value, _, _ = evaluated(get_loss("value_clip"), data, [[1.0, 2.0]])
    assert loss_value == 0.5
