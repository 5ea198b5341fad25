"""Losses of the margin, in numbers to be redone on paper: c and j are the log-ratios of chosen and rejected, Δ = c - j."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lossbook import get_loss
from lossbook.datums.errors import LossConfigError, MissingInput

from ..cases import assert_rows_equal, datum, evaluated
from .preference_pairs import of_ratios, pair_of, sigmoid, softplus

EXACT = {"rel": 1e-12, "abs": 1e-12}
#: Policy sums -10 and -14 over 5 and 7 tokens, reference -11 and -13: c = 1, j = -1.
TWO_NATS = pair_of([-1, -4, -2, -3, -1], [-1, -1, -2, -2, -2, -2, -3])


@pytest.mark.parametrize(
    ("loss", "settings", "value"),
    [
        pytest.param("dpo", {}, 0.5981389, id="dpo"),
        pytest.param("hinge", {}, 0.8, id="hinge"),
        pytest.param("ipo", {}, 21.6889796, id="ipo of means: (1/5 + 1/7 - 5) squared"),
        pytest.param("ipo", {"length_normalized": False}, 9.0, id="ipo of sums: (2 - 5) squared"),
        pytest.param("robust", {"label_smoothing": 0.1}, 0.5731389, id="robust"),
        pytest.param("simpo", {"beta": 2.0, "gamma": 1.0}, 1.3132617, id="simpo: both means are -2"),
    ],
)
def test_a_margin_of_two_nats(loss: str, settings: dict[str, Any], value: float) -> None:
    assert evaluated(get_loss(loss, **settings), TWO_NATS, [[-2.0] * 5, [-2.0] * 7])[0] == pytest.approx(
        value, abs=1e-7
    )


@pytest.mark.parametrize(
    ("loss", "settings", "c", "j", "value", "slope"),
    [
        pytest.param("hinge", {"beta": 0.5}, 1.0, 0.0, 0.5, -0.5, id="hinge, half won: pushed at full speed"),
        pytest.param("hinge", {"beta": 0.5}, 1.5, -0.5, 0.0, 0.0, id="hinge, exactly won: left alone"),
        pytest.param("hinge", {"beta": 0.5}, 4.0, 0.0, 0.0, 0.0, id="hinge, more than won: left alone"),
        pytest.param("hinge", {"beta": 0.5}, -1.0, 1.0, 2.0, -0.5, id="hinge, lost: no faster than before"),
        pytest.param(
            "robust", {"beta": 1.0, "label_smoothing": 0.25}, 0.0, 0.0, math.log(2), -1.0, id="robust, no margin"
        ),
        pytest.param(
            "robust",
            {"beta": 1.0, "label_smoothing": 0.25},
            2.0,
            0.0,
            (0.75 * softplus(-2) - 0.25 * softplus(2)) / 0.5,
            -(0.75 * sigmoid(-2) + 0.25 * sigmoid(2)) / 0.5,
            id="robust, won: below 0, and pushed further",
        ),
        pytest.param(
            "exo_pair",
            {"beta": 1.0, "label_smoothing": 0.25},
            math.log(3),
            0.0,
            0.0,
            0.0,
            id="exo at the label's odds: least",
        ),
        pytest.param(
            "exo_pair",
            {"beta": 1.0, "label_smoothing": 0.25},
            0.0,
            0.0,
            0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25),
            -0.25 * math.log(3),
            id="exo, no margin: q (1 - q) of the way to the label's odds",
        ),
        pytest.param(
            "exo_pair",
            {"beta": 1.0, "label_smoothing": 0.25},
            math.log(7),
            0.0,
            7 / 8 * math.log(7 / 6) + 1 / 8 * math.log(1 / 2),
            7 / 64 * math.log(7 / 3),
            id="exo, won by more than the label's odds: pulled back",
        ),
        pytest.param(
            "discopop", {"beta": 1.0}, 0.0, 0.0, (1 + math.log(2)) / 2, -0.75 + 5 * (1 - math.log(2)), id="discopop"
        ),
        pytest.param(
            "discopop", {"beta": 1.0}, 9.0, -1.0, math.exp(-10), -math.exp(-10), id="discopop, won: exponential"
        ),
        pytest.param("discopop", {"beta": 1.0}, -1.0, 9.0, softplus(10), -sigmoid(10), id="discopop, lost: logistic"),
        pytest.param(
            "discopop",
            {"beta": 1.0, "tau": 1.0},
            1.0,
            0.0,
            sigmoid(-1) * softplus(-1) + sigmoid(1) * math.exp(-1),
            -sigmoid(1) * sigmoid(-1) * softplus(-1)
            - sigmoid(-1) ** 2
            + (sigmoid(1) * sigmoid(-1) - sigmoid(1)) * math.exp(-1),
            id="discopop, tau 1",
        ),
        pytest.param("ipo", {"beta": 0.25}, 2.0, 0.0, 0.0, 0.0, id="ipo at its target of 1 / (2 beta)"),
        pytest.param("ipo", {"beta": 0.25}, 3.0, 0.0, 1.0, 2.0, id="ipo past its target: pulled back"),
        pytest.param("ipo", {"beta": 0.25, "length_normalized": False}, 0.0, 1.0, 9.0, -6.0, id="ipo, lost"),
        pytest.param("sigmoid_norm", {"beta": 1.0}, 2.0, 0.0, softplus(-2), -sigmoid(-2), id="sigmoid_norm"),
        pytest.param(
            "ld_dpo", {"beta": 1.0, "alpha": 0.0}, 2.0, 0.0, softplus(-2), -sigmoid(-2), id="ld_dpo, equal lengths"
        ),
    ],
)
def test_a_pair_of_one_token_each(
    loss: str, settings: dict[str, Any], c: float, j: float, value: float, slope: float
) -> None:
    loss_value, gradients, metrics = of_ratios(loss, c, j, **settings)
    assert loss_value == pytest.approx(value, **EXACT)
    assert gradients == pytest.approx([slope, -slope], **EXACT)
    assert metrics["margin"] == pytest.approx(c - j)
    assert metrics["accuracy"] == (c > j)
    assert metrics["chosen_reward"] == pytest.approx(settings["beta"] * c)
    assert metrics["rejected_reward"] == pytest.approx(settings["beta"] * j)


@pytest.mark.parametrize(("margin", "satisfied"), [(1.9375, 0), (2.0, 1), (3.0, 1)])
def test_hinge_counts_the_pairs_that_need_no_more(margin: float, satisfied: int) -> None:
    assert of_ratios("hinge", margin, 0.0, beta=0.5)[2]["satisfied"] == satisfied


@pytest.mark.parametrize(
    ("divergence", "alpha", "score", "slope"),
    [
        pytest.param("reverse_kl", 0.5, lambda x: x, lambda x: 1.0, id="reverse KL: the log-ratio"),
        pytest.param("forward_kl", 0.5, lambda x: 1 - math.exp(-x), lambda x: math.exp(-x), id="forward KL"),
        pytest.param("js", 0.5, lambda x: math.log(2) - softplus(-x), lambda x: sigmoid(-x), id="Jensen-Shannon"),
        pytest.param(
            "alpha", 0.5, lambda x: 2 - 2 * math.exp(-x / 2), lambda x: math.exp(-x / 2), id="alpha of a half"
        ),
        pytest.param("alpha", 1.5, lambda x: 2 * math.exp(x / 2) - 2, lambda x: math.exp(x / 2), id="alpha above 1"),
        pytest.param("alpha", 1.0, lambda x: x, lambda x: 1.0, id="alpha 1 is the reverse KL"),
        pytest.param(
            "alpha", 1.0 + 1e-7, lambda x: x, lambda x: 1.0, id="alpha next to 1, where the quotient would be noise"
        ),
        pytest.param(
            "alpha",
            1.0 + 1e-5,
            lambda x: math.expm1(1e-5 * x) / 1e-5,
            lambda x: math.exp(1e-5 * x),
            id="alpha near 1 by its own formula",
        ),
    ],
)
def test_a_divergence_scores_each_response_before_the_difference(
    divergence: str, alpha: float, score: Any, slope: Any
) -> None:
    c, j = 1.5, -0.5
    value, gradients, metrics = of_ratios("dpo", c, j, beta=0.5, divergence=divergence, alpha=alpha)
    margin = score(c) - score(j)
    assert value == pytest.approx(softplus(-0.5 * margin), rel=1e-9)
    push = -0.5 * sigmoid(-0.5 * margin)
    assert gradients == pytest.approx([push * slope(c), -push * slope(j)], rel=1e-9)
    assert metrics["margin"] == pytest.approx(margin, rel=1e-9)
    assert metrics["chosen_reward"] == pytest.approx(0.5 * score(c), rel=1e-9)
    assert metrics["rejected_reward"] == pytest.approx(0.5 * score(j), rel=1e-9)
    assert metrics["score_capped"] == 0


@pytest.mark.parametrize(
    ("ratio", "capped", "slope"),
    [
        pytest.param(-80.0, 0, -0.5 * math.exp(80), id="at the cap: e^80 of a gradient"),
        pytest.param(-80.5, 1, 0.0, id="beyond the cap: none, and counted"),
        pytest.param(-1e4, 1, 0.0, id="far beyond it"),
    ],
)
@pytest.mark.parametrize("side", [0, 1], ids=["chosen", "rejected"])
def test_a_score_is_capped_where_exp_would_overflow(ratio: float, capped: int, slope: float, side: int) -> None:
    ratios = [0.0, 0.0]
    ratios[side] = ratio
    value, gradients, metrics = of_ratios("dpo", *ratios, beta=0.5, divergence="forward_kl")
    assert metrics["score_capped"] == capped
    assert math.isfinite(value)
    # The chosen response fell: the loss is linear. The rejected one fell: the pair is won, and there is nothing to do.
    assert gradients[side] == pytest.approx(slope if side == 0 else 0.0, rel=1e-9)


@pytest.mark.parametrize(
    ("margin", "value", "slope", "shortfall"),
    [
        pytest.param(0.0, softplus(-1.0), -0.5 * sigmoid(-1.0), 0, id="no margin: dpo"),
        pytest.param(1.0, math.log(2), -0.25, 0, id="exactly reached: ln 2, and no shortfall"),
        pytest.param(1.5, softplus(0.5), -0.5 * sigmoid(0.5), 1, id="half a nat short"),
    ],
)
def test_margin_dpo_wants_a_pair_to_win_by_its_margin(
    margin: float, value: float, slope: float, shortfall: int
) -> None:
    loss_value, gradients, metrics = of_ratios("margin_dpo", 1.0, -1.0, beta=0.5, inputs={"margin": (margin, 99.0)})
    assert loss_value == pytest.approx(value, **EXACT)
    assert gradients == pytest.approx([slope, -slope], **EXACT)
    assert metrics["shortfall"] == shortfall
    assert metrics["margin"] == 2.0


def test_margin_dpo_is_also_called_odpo_and_needs_its_margins() -> None:
    assert get_loss("odpo").name == "margin_dpo"
    with pytest.raises(MissingInput, match=r"^margin_dpo reads 'margin', which datum 0 of 2 does not carry"):
        get_loss("odpo").check(pair_of([-1.0], [-1.0]))


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        pytest.param("exo_pair", {"label_smoothing": 0.0}, id="exo_pair takes the logarithm of its smoothing"),
        pytest.param("exo_pair", {"label_smoothing": 0.5}, id="half of the labels wrong say nothing"),
        pytest.param("robust", {"label_smoothing": 0.5}, id="robust divides by 1 - 2 label_smoothing"),
        pytest.param("dpo", {"divergence": "alpha", "alpha": 0.0}, id="an alpha of 0"),
        pytest.param("ld_dpo", {"alpha": 1.5}, id="a share above 1"),
    ],
)
def test_settings_without_a_meaning_are_refused(loss: str, settings: dict[str, Any]) -> None:
    with pytest.raises(LossConfigError, match=next(reversed(settings))):
        get_loss(loss, **settings)


@pytest.mark.parametrize("loss", ["discopop", "exo_pair", "robust", "hinge"])
@pytest.mark.parametrize("margin", [1e4, -1e4], ids=["won", "lost"])
def test_a_pair_decided_by_10000_nats_is_finite(loss: str, margin: float) -> None:
    data = pair_of([-1.0 - max(-margin, 0)], [-1.0])
    rows = [[-1.0 - max(-margin, 0)], [-1.0 - max(margin, 0)]]
    rows = rows if margin > 0 else [[-1.0 - 1e4], [-1.0]]
    data = pair_of([-1.0], [-1.0])
    value, gradients, metrics = evaluated(get_loss(loss, beta=1.0), data, rows)
    assert metrics["margin"] == margin
    assert math.isfinite(value)
    assert all(math.isfinite(float(g)) for g in gradients)


def test_discopop_of_a_wide_tau_is_capped_rather_than_infinite() -> None:
    value, gradients, _ = of_ratios("discopop", -15.0, 15.0, beta=100.0, tau=2.0)
    assert value == pytest.approx(math.exp(80), rel=1e-9)
    assert gradients[0] == pytest.approx(-100.0, abs=1e-6)  # only the logistic part still pulls


def test_ipo_and_sigmoid_norm_take_weighted_means() -> None:
    data = [
        datum(2, weights=[1, 3], ref_logprobs=[0.0, 0.0]),
        datum(1, weights=[2], ref_logprobs=[0.0]),
    ]
    rows = [[-1.0, -2.0], [-3.0]]  # means -7/4 and -3
    value, gradients, metrics = evaluated(get_loss("sigmoid_norm", beta=1.0), data, rows)
    assert metrics["margin"] == 1.25
    assert value == pytest.approx(softplus(-1.25))
    push = -sigmoid(-1.25)
    assert_rows_equal(gradients, [[push / 4, push * 3 / 4], [-push]], 1e-12)
    assert evaluated(get_loss("ipo", beta=0.4), data, rows)[0] == pytest.approx(0.0, abs=1e-12)
    sums = evaluated(get_loss("ipo", beta=0.4, length_normalized=False), data, rows)
    assert sums[0] == pytest.approx((-7 + 6 - 1.25) ** 2)


@pytest.mark.parametrize(
    ("alpha", "shares"),
    [
        pytest.param(1.0, [1, 1, 1], id="alpha 1 is dpo"),
        pytest.param(0.5, [1, 0.5, 0.5], id="what is longer counts half"),
        pytest.param(0.0, [1, 0, 0], id="or not at all"),
    ],
)
@pytest.mark.parametrize("turn", [False, True], ids=["the chosen one is longer", "the rejected one is longer"])
def test_ld_dpo_weighs_what_is_beyond_the_shorter_response(alpha: float, shares: list[float], turn: bool) -> None:
    # Position 1 of the long response is masked: lengths count tokens of non-zero weight, 3 and 1.
    long = datum(4, weights=[1, 0, 1, 1], ref_logprobs=[-2.0] * 4)
    short = datum(1, weights=[1], ref_logprobs=[-2.0])
    rows = [[-1.0, -9.0, -1.5, -1.75], [-1.25]]
    sums = [1.0 * shares[0] + 0.5 * shares[1] + 0.25 * shares[2], 0.75]
    data = [short, long] if turn else [long, short]
    margin = (sums[1] - sums[0]) if turn else (sums[0] - sums[1])
    value, gradients, metrics = evaluated(get_loss("ld_dpo", beta=1.0, alpha=alpha), data, rows[::-1] if turn else rows)
    assert metrics["margin"] == pytest.approx(margin)
    assert value == pytest.approx(softplus(-margin))
    push = -sigmoid(-margin) * (-1 if turn else 1)
    wanted = [[push * shares[0], 0, push * shares[1], push * shares[2]], [-push]]
    assert_rows_equal(gradients, wanted[::-1] if turn else wanted, 1e-12)


def test_ld_dpo_measures_each_pair_by_itself() -> None:
    data = [*pair_of([-1.0] * 3, [-1.0]), *pair_of([-1.0], [-1.0] * 2)]
    rows = [[-0.5] * 3, [-1.0], [-1.0], [-0.5] * 2]
    _, gradients, metrics = evaluated(get_loss("ld_dpo", beta=1.0, alpha=0.0), data, rows)
    assert metrics["margin"] == pytest.approx((0.5 - 0.5) / 2)
    assert [float(g[-1]) != 0 for g in gradients] == [False, True, True, False]
