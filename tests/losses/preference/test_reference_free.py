"""Losses without a reference, in numbers to be redone on paper: a and b are the mean logprobs of chosen and rejected."""

from __future__ import annotations

import math

import pytest
import torch

from lossbook import get_loss
from lossbook.datums.errors import LossConfigError
from lossbook.losses.preference.reference_free import log_odds

from ..cases import assert_rows_equal, datum, evaluated
from .preference_pairs import of_logprobs, sigmoid, softplus

EXACT = {"rel": 1e-12, "abs": 1e-12}


@pytest.mark.parametrize(
    ("a", "b", "gamma", "value", "slope"),
    [
        pytest.param(-1.0, -1.5, 1.0, math.log(2), -1.0, id="ahead by gamma / beta: as good as undecided"),
        pytest.param(-1.0, -1.0, 1.0, softplus(1), -2 * sigmoid(1), id="level: short of gamma"),
        pytest.param(-2.0, -1.0, 0.0, softplus(2), -2 * sigmoid(2), id="no gamma, behind"),
    ],
)
def test_simpo_wants_a_lead_in_nats_a_token(a: float, b: float, gamma: float, value: float, slope: float) -> None:
    loss_value, gradients, metrics = of_logprobs("simpo", a, b, beta=2.0, gamma=gamma)
    assert loss_value == pytest.approx(value, **EXACT)
    assert gradients == pytest.approx([slope, -slope], **EXACT)
    assert metrics["margin"] == a - b
    assert metrics["chosen_reward"] == 2 * a
    assert metrics["rejected_reward"] == 2 * b


def test_simpo_is_per_token() -> None:
    data = [datum(2, weights=[1, 1]), datum(1, weights=[1])]
    value, gradients, _ = evaluated(get_loss("simpo", beta=1.0, gamma=0.0), data, [[-1.0, -2.0], [-1.5]])
    assert value == pytest.approx(math.log(2))
    assert_rows_equal(gradients, [[-0.25, -0.25], [0.5]], 1e-12)


@pytest.mark.parametrize(
    ("alpha", "reward", "slope"),
    [
        pytest.param(0.0, lambda a: a, lambda a: 1.0, id="alpha 0: the logprob"),
        pytest.param(1e-7, lambda a: a, lambda a: 1.0, id="alpha next to 0"),
        pytest.param(
            0.5, lambda a: 2 - 2 * math.exp(-a / 2), lambda a: math.exp(-a / 2), id="above: unlikely ones pull harder"
        ),
        pytest.param(-1.0, lambda a: math.exp(a) - 1, math.exp, id="alpha -1: the probability"),
        pytest.param(
            1e-5,
            lambda a: -math.expm1(-1e-5 * a) / 1e-5,
            lambda a: math.exp(-1e-5 * a),
            id="alpha near 0 by its formula",
        ),
    ],
)
def test_alphapo_shapes_the_reward_by_a_power_of_the_probability(alpha: float, reward, slope) -> None:  # type: ignore[no-untyped-def]
    a, b = -1.0, -3.0
    value, gradients, metrics = of_logprobs("alphapo", a, b, beta=0.5, gamma=0.25, alpha=alpha)
    lead = 0.5 * (reward(a) - reward(b)) - 0.25
    assert value == pytest.approx(softplus(-lead), rel=1e-9)
    push = -0.5 * sigmoid(-lead)
    assert gradients == pytest.approx([push * slope(a), -push * slope(b)], rel=1e-9)
    assert metrics["margin"] == pytest.approx(reward(a) - reward(b), rel=1e-9)
    assert metrics["chosen_reward"] == pytest.approx(0.5 * reward(a), rel=1e-9)
    assert metrics["score_capped"] == 0


@pytest.mark.parametrize(
    ("b", "capped"), [pytest.param(-80.0, 0, id="at the cap"), pytest.param(-80.5, 1, id="beyond it")]
)
def test_alphapo_counts_the_responses_too_unlikely_for_its_power(b: float, capped: int) -> None:
    value, gradients, metrics = of_logprobs("alphapo", b, -1.0, alpha=1.0)
    assert metrics["score_capped"] == capped
    assert math.isfinite(value)
    assert gradients[0] == pytest.approx(0.0 if capped else -2 * math.exp(80), rel=1e-9)


def test_cpo_adds_the_chosen_responses_own_mean_likelihood() -> None:
    data = [datum(2, weights=[1, 1]), datum(1, weights=[1])]
    rows = [[-1.0, -2.0], [-1.0]]  # sums -3 and -1, so beta Δ = -1; mean of the chosen -1.5
    value, gradients, metrics = evaluated(get_loss("cpo", beta=0.5, nll_coefficient=2.0), data, rows)
    assert value == pytest.approx(softplus(1) + 3.0, **EXACT)
    push = -0.5 * sigmoid(1)
    assert_rows_equal(gradients, [[push - 1, push - 1], [-push]], 1e-12)
    assert metrics["chosen_nll"] == 1.5
    assert metrics["margin"] == -2.0
    assert metrics["chosen_reward"] == -1.5
    smoothed = evaluated(get_loss("cpo", beta=0.5, nll_coefficient=0.0, label_smoothing=0.25), data, rows)[0]
    assert smoothed == pytest.approx(0.75 * softplus(1) + 0.25 * softplus(-1), **EXACT)


@pytest.mark.parametrize(
    ("settings", "value", "slopes"),
    [
        # Sums -3 and -1: beta Δ = -1. Means -1.5 and -1: Δ = -0.5.
        pytest.param({}, softplus(1), [-0.5 * sigmoid(1), 0.5 * sigmoid(1)], id="sigmoid of sums"),
        pytest.param(
            {"label_smoothing": 0.25},
            0.75 * softplus(1) + 0.25 * softplus(-1),
            [-0.5 * (0.75 * sigmoid(1) - 0.25 * sigmoid(-1)), 0.5 * (0.75 * sigmoid(1) - 0.25 * sigmoid(-1))],
            id="sigmoid, smoothed",
        ),
        pytest.param({"contrast": "hinge"}, 2.0, [-0.5, 0.5], id="hinge of sums"),
        pytest.param({"contrast": "ipo"}, 2.25, [-1.5, 3.0], id="ipo of means: (-0.5 - 1)²"),
        pytest.param(
            {"contrast": "tpo_l"},
            softplus(0.75),
            [-0.25 * sigmoid(0.75), 0.5 * sigmoid(0.75)],
            id="tpo_l of means: -0.25 - 0.5",
        ),
    ],
)
def test_tpo_contrasts_chosen_and_rejected(settings: dict, value: float, slopes: list[float]) -> None:
    data = [datum(2, weights=[1, 1]), datum(1, weights=[1])]
    own, gradients, metrics = evaluated(get_loss("tpo", beta=0.5, **settings), data, [[-1.0, -2.0], [-1.0]])
    assert own == pytest.approx(value, **EXACT)
    assert_rows_equal(gradients, [[slopes[0], slopes[0]], [slopes[1]]], 1e-12)
    is_mean = settings.get("contrast") in ("ipo", "tpo_l")
    assert metrics["margin"] == (-0.5 if is_mean else -2.0)
    assert metrics["chosen_reward"] == (-0.75 if is_mean else -1.5)


def test_gold_responses_are_learned_beside_the_pairs() -> None:
    """As TRL's TPO: the contrast of chosen and rejected, and the mean over all gold tokens."""
    masks = {
        "chosen": ([1.0], [0.0]),
        "rejected": ([1.0], [0.0]),
        "gold": ([0.0, 0.0], [1.0, 1.0]),
        "last": ([0.0], [1.0]),
    }
    data = [datum(len(own), weights=own, gold_weights=gold) for own, gold in masks.values()]
    rows = [[-3.0], [-1.0], [-0.5, -1.5], [-4.0]]
    loss = get_loss("tpo", beta=0.5) + get_loss("cross_entropy", weights="gold_weights", reduction="token-mean")
    value, gradients, _ = evaluated(loss, data, rows)
    assert value == pytest.approx(softplus(1) + 2.0, **EXACT)  # beta Δ = -1; the gold tokens' mean is 6 / 3
    push = -0.5 * sigmoid(1)
    assert_rows_equal(gradients, [[push], [-push], [-1 / 3, -1 / 3], [-1 / 3]], 1e-12)


def test_a_pair_that_tpo_hinge_has_told_apart_has_no_gradient() -> None:
    value, gradients, _ = of_logprobs("tpo", -1.0, -4.0, beta=0.5, contrast="hinge")
    assert (value, gradients) == (0.0, [0.0, 0.0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.0}, "gamma=1 is read only with contrast='tpo_l'"),
        ({"contrast": "hinge", "label_smoothing": 0.1}, "label_smoothing=0.1 is not read with contrast='hinge'"),
        ({"contrast": "ipo", "label_smoothing": 0.1}, "label_smoothing=0.1 is not read with contrast='ipo'"),
    ],
    ids=["gamma", "smoothed hinge", "smoothed ipo"],
)
def test_tpo_refuses_settings_that_its_contrast_does_not_read(settings: dict, message: str) -> None:
    with pytest.raises(LossConfigError, match=message):
        get_loss("tpo", **settings)
    assert get_loss("tpo", contrast="tpo_l", gamma=1.0, label_smoothing=0.1).settings["gamma"] == 1.0


def test_orpo_of_two_mean_logprobs() -> None:
    # Log-odds of e^-0.5 and e^-1.5: 0.4327521 and -1.2475176; -a + log(1 + exp(-1.6802697)) = 0.5 + 0.1708592.
    value, gradients, metrics = of_logprobs("orpo", -0.5, -1.5)
    assert value == pytest.approx(0.6708592, abs=1e-7)
    assert metrics["margin"] == pytest.approx(1.6802697, abs=1e-7)
    assert metrics["chosen_reward"] == pytest.approx(0.4327521, abs=1e-7)
    assert metrics["chosen_nll"] == 0.5
    push = -sigmoid(-metrics["margin"])  # the slope of a log-odds is 1 / (1 - p)
    assert gradients == pytest.approx([-1 + push / (1 - math.exp(-0.5)), -push / (1 - math.exp(-1.5))], rel=1e-9)


@pytest.mark.parametrize("coefficient", [0.0, 0.1, 2.0])
def test_the_odds_of_orpo_are_scaled_and_the_likelihood_is_not(coefficient: float) -> None:
    value = of_logprobs("orpo", -0.5, -1.5, odds_coefficient=coefficient)[0]
    assert value == pytest.approx(0.5 + coefficient * 0.1708592, abs=1e-6)


@pytest.mark.parametrize(
    ("logprob", "odds"),
    [
        pytest.param(-1e-3, math.log(math.exp(-1e-3) / -math.expm1(-1e-3)), id="nearly certain"),
        pytest.param(-math.log(2), 0.0, id="even"),
        pytest.param(-0.5, -0.5 - math.log(-math.expm1(-0.5)), id="likelier than not"),
        pytest.param(-50.0, -50.0, id="unlikely: the logprob itself"),
        pytest.param(0.0, -1e-6 - math.log(-math.expm1(-1e-6)), id="certain: held off the pole, at 13.8"),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
def test_log_odds_keep_their_digits(logprob: float, odds: float, dtype: torch.dtype, tolerance: float) -> None:
    own_odds = log_odds(torch.tensor([logprob], dtype=dtype))
    assert float(own_odds) == pytest.approx(odds, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize(
    ("logprob", "has_gradient"),
    [
        pytest.param(-1e-6, True, id="at the bound"),
        pytest.param(-0.9e-6, False, id="nearer to 0"),
        pytest.param(0.0, False, id="certain"),
    ],
)
def test_a_certain_response_has_no_gradient_by_its_odds(logprob: float, has_gradient: bool) -> None:
    leaf = torch.tensor([logprob], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(log_odds(leaf).sum(), leaf)
    assert float(gradient) == pytest.approx(1e6 if has_gradient else 0.0, rel=1e-5)


def test_log_odds_have_a_gradient_on_both_sides_of_the_branch() -> None:
    leaf = torch.tensor([-0.69, -0.7, -1e4], dtype=torch.float32, requires_grad=True)
    (gradient,) = torch.autograd.grad(log_odds(leaf).sum(), leaf)
    assert gradient.tolist() == pytest.approx([1 / -math.expm1(-0.69), 1 / -math.expm1(-0.7), 1.0], rel=1e-5)


def test_the_chosen_likelihood_raises_the_chosen_response_alone() -> None:
    data = [datum(2, weights=[1, 3]), datum(2, weights=[1, 1])]
    value, gradients, metrics = evaluated(get_loss("chosen_nll"), data, [[-1.0, -2.0], [-4.0, -2.0]])
    assert value == (1 + 3 * 2) / 4
    assert_rows_equal(gradients, [[-0.25, -0.75], [0, 0]], 0)
    assert metrics["rejected_nll"] == 3.0
    both = get_loss("dpo") + 0.5 * get_loss("chosen_nll")
    assert both.couples == "pair"
