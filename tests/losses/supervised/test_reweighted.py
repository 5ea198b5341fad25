"""Cross-entropy that looks at how likely a token is already, and its opposite: one token's numbers, worked by hand."""

from __future__ import annotations

import math

import pytest

from lossbook import get_loss
from lossbook.datums.errors import LossConfigError

from ..cases import assert_rows_equal, datum, evaluated

LN2 = math.log(2)


@pytest.mark.parametrize(
    ("probability", "loss", "gradient"),
    [
        pytest.param(1.0, 0.0, -1.0, id="certain: cross-entropy's gradient"),
        pytest.param(0.5, 0.5 * LN2, -0.5, id="even odds: half of it"),
        pytest.param(0.25, 0.5 * LN2, -0.25, id="a quarter: the same loss, half the gradient"),
        pytest.param(1e-30, 1e-30 * 30 * math.log(10), -1e-30, id="never said: nothing is learned"),
    ],
)
def test_dft_weighs_a_token_by_its_probability_and_does_not_differentiate_the_weight(
    probability: float, loss: float, gradient: float
) -> None:
    value, gradients, metrics = evaluated(get_loss("dft"), [datum(1, weights=[1.0])], [[math.log(probability)]])
    assert value == pytest.approx(loss, rel=1e-12)
    assert_rows_equal(gradients, [[gradient]], 1e-15)
    assert metrics["probability"] == pytest.approx(probability)


@pytest.mark.parametrize(
    ("gamma", "probability", "loss", "gradient"),
    [
        # (1 - p)^γ (-log p); its derivative by log p is γ p (1 - p)^(γ-1) log p - (1 - p)^γ
        pytest.param(2.0, 0.5, LN2 / 4, -LN2 / 2 - 0.25, id="even odds: a quarter, and the factor's own gradient"),
        pytest.param(1.0, 0.5, LN2 / 2, -LN2 / 2 - 0.5, id="gamma 1"),
        pytest.param(0.0, 0.5, LN2, -1.0, id="gamma 0: cross-entropy"),
        pytest.param(0.0, 1.0, 0.0, -1.0, id="gamma 0 at certainty: cross-entropy there too"),
        pytest.param(2.0, 1.0, 0.0, 0.0, id="certain: nothing"),
        pytest.param(
            0.5, 1.0, 0.0, 0.0, id="certain with gamma below 1: nothing, though the factor's slope is infinite"
        ),
        pytest.param(
            0.5,
            0.75,
            -0.5 * math.log(0.75),
            0.5 * 0.75 * 2 * math.log(0.75) - 0.5,
            id="gamma below 1 at three quarters",
        ),
    ],
)
def test_focal_lets_a_likely_token_count_less(gamma: float, probability: float, loss: float, gradient: float) -> None:
    logprob = math.log(probability)
    value, gradients, metrics = evaluated(get_loss("focal", gamma=gamma), [datum(1, weights=[1.0])], [[logprob]])
    assert value == pytest.approx(loss, rel=1e-12, abs=1e-15)
    assert_rows_equal(gradients, [[gradient]], 1e-12)
    assert metrics["focal_factor"] == pytest.approx((1 - probability) ** gamma, abs=1e-12)


@pytest.mark.parametrize("logprob", [0.0, -1e-40, -1e-30, -1e-15])
@pytest.mark.parametrize("gamma", [0.01, 0.5, 0.999])
def test_the_gradient_of_focal_is_finite_however_certain_the_model(gamma: float, logprob: float) -> None:
    _, (gradient,), _ = evaluated(get_loss("focal", gamma=gamma), [datum(1, weights=[1.0])], [[logprob]])
    assert -1 <= float(gradient) <= 0


def test_focals_defaults_are_those_of_the_paper_and_gamma_is_not_negative() -> None:
    assert get_loss("focal").settings == {"gamma": 2.0}
    with pytest.raises(LossConfigError, match="gamma"):
        get_loss("focal", gamma=-1.0)


@pytest.mark.parametrize(
    ("logprob", "loss", "gradient", "certain"),
    [
        pytest.param(-LN2, LN2, 1.0, 0.0, id="even odds: pushed down as hard as cross-entropy pushes up"),
        pytest.param(math.log(0.9), math.log(10), 9.0, 0.0, id="nine to one: nine times as hard"),
        pytest.param(-1e4, 0.0, 0.0, 0.0, id="never said: nothing to do"),
        pytest.param(-1e-6, 13.815511057964274, 999999.5, 0.0, id="at the cap: the last that has a gradient"),
        pytest.param(0.0, 13.815511057964274, 0.0, 1.0, id="certain: held, no gradient, counted"),
    ],
)
def test_unlikelihood_pushes_a_token_down_by_its_odds(
    logprob: float, loss: float, gradient: float, certain: float
) -> None:
    # 13.8155... is -log(1 - exp(-1e-6)) = 6 ln 10 + 5e-7; the odds there are 1 / (exp(1e-6) - 1)
    value, gradients, metrics = evaluated(get_loss("unlikelihood"), [datum(1, weights=[1.0])], [[logprob]])
    assert value == pytest.approx(loss, rel=1e-9)
    assert_rows_equal(gradients, [[gradient]], 1e-6)
    assert metrics["certain"] == certain


@pytest.mark.parametrize("name", ["dft", "focal", "unlikelihood"])
def test_the_mean_is_over_weighted_tokens(name: str) -> None:
    rows = [[-0.5, -1.0, -2.0], [-0.25]]
    loss = get_loss(name)
    mean, _, _ = evaluated(loss, [datum(3, weights=[0, 1, 2]), datum(1, weights=[1])], rows)
    single = [evaluated(get_loss(name, reduction="sum"), [datum(1)], [[x]])[0] for x in (-1.0, -2.0, -0.25)]
    assert mean == pytest.approx((single[0] + 2 * single[1] + single[2]) / 4, rel=1e-12)


@pytest.mark.parametrize("name", ["dft", "focal", "unlikelihood"])
def test_k_targets_of_a_position_are_k_tokens(name: str) -> None:
    loss = get_loss(name, reduction="sum")
    wide, slopes, _ = evaluated(loss, [datum([[1, 2]], weights=[[0.5, 0.25]])], [[[-1.0, -2.0]]])
    flat, expected, _ = evaluated(loss, [datum(2, weights=[0.5, 0.25])], [[-1.0, -2.0]])
    assert wide == pytest.approx(flat, rel=1e-15)
    assert_rows_equal([slopes[0][0]], expected, 1e-15)


def test_cross_entropy_has_the_short_name_of_other_systems() -> None:
    assert get_loss("ce").name == "cross_entropy"


@pytest.mark.parametrize(
    ("epsilon", "probability", "loss", "gradient"),
    [
        # -log p + ε (1 - p); its derivative by log p is -1 - ε p
        pytest.param(2.0, 0.5, LN2 + 1.0, -2.0, id="even odds: twice cross-entropy's push"),
        pytest.param(2.0, 1.0, 0.0, -3.0, id="certain: no loss, pushed hardest"),
        pytest.param(0.5, 0.25, 2 * LN2 + 0.375, -1.125, id="a smaller epsilon"),
    ],
)
def test_poly1_pushes_a_likely_token_harder(epsilon: float, probability: float, loss: float, gradient: float) -> None:
    data = [datum(1, weights=[1.0])]
    value, gradients, metrics = evaluated(get_loss("poly1", epsilon=epsilon), data, [[math.log(probability)]])
    assert value == pytest.approx(loss, rel=1e-12, abs=1e-15)
    assert_rows_equal(gradients, [[gradient]], 1e-12)
    assert metrics["probability"] == pytest.approx(probability)
    assert get_loss("poly1").settings == {"epsilon": 2.0}
