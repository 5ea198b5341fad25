"""On-policy distillation: what the teacher's opinion of a sampled token does to it."""

from __future__ import annotations

import math

import pytest

from lossbook import get_loss

from ..cases import assert_rows_equal, datum, evaluated

LN2 = math.log(2)


def one_token(name: str, own: float, sampled: float, teacher: float, **config: float) -> tuple[float, float, dict]:
    """Loss, slope and metrics of one token with these log-probabilities."""
    data = [datum(1, sampling_logprobs=[sampled], teacher_logprobs=[teacher], weights=[1.0])]
    value, gradients, metrics = evaluated(get_loss(name, **config), data, [[own]])
    return value, float(gradients[0][0]), metrics


@pytest.mark.parametrize(
    ("own", "teacher", "config", "loss", "slope"),
    [
        pytest.param(-1.0, -0.5, {}, -0.5, -0.5, id="on policy, liked by the teacher: pushed up by the gap"),
        pytest.param(-1.0, -3.0, {}, 2.0, 2.0, id="on policy, disliked: pushed down by the gap"),
        pytest.param(-1.0, -1.0, {}, 0.0, 0.0, id="as likely to the teacher: left alone"),
        pytest.param(-1.0, -0.5, {"scale": 0.5}, -0.25, -0.25, id="half the scale"),
        pytest.param(-1.0 + LN2, -0.5, {}, -1.0, -1.0, id="twice as likely as when sampled: twice the push"),
        pytest.param(0.0, -0.5, {"ratio_log_cap": 0.5}, -0.5 * math.exp(0.5), 0.0, id="beyond the cap: no push"),
    ],
)
def test_a_sampled_token_is_pushed_by_the_gap_to_the_teacher(
    own: float, teacher: float, config: dict[str, float], loss: float, slope: float
) -> None:
    value, gradient, _ = one_token("sampled_reverse_kl", own, -1.0, teacher, **config)
    assert (value, gradient) == pytest.approx((loss, slope), abs=1e-12)


def test_it_is_importance_sampling_with_the_gap_as_advantage() -> None:
    inputs = {
        "sampling_logprobs": [-1.0, -0.5, -2.0],
        "teacher_logprobs": [-0.5, -1.5, -2.5],
        "weights": [0.5, 2.0, -1.0],
    }
    own = [[-0.75, -0.5, -2.25]]
    mine = evaluated(get_loss("sampled_reverse_kl", scale=2.0), [datum(3, **inputs)], own)
    gaps = datum(3, **inputs, advantages=[1.0, -2.0, -1.0])
    other = evaluated(get_loss("importance_sampling"), [gaps], own)
    assert mine[0] == pytest.approx(other[0], abs=1e-12)
    assert_rows_equal(mine[1], other[1], 1e-12)


def test_the_reported_kl_is_the_samples_own() -> None:
    _, _, metrics = one_token("sampled_reverse_kl", -1.5, -1.0, -3.0)
    assert metrics["teacher_kl"] == 2.0
    assert metrics["teacher_nll"] == 3.0
    assert one_token("ref_kl", -1.5, -1.0, -3.0)[2]["teacher_kl"] == 1.5  # of the policy as it is now


@pytest.mark.parametrize(
    ("own", "config", "loss", "slope", "dropped"),
    [
        pytest.param(-1.0, {"max_drop": 0.0}, -0.5, -0.5, 0.0, id="on policy, exactly at the bound: kept"),
        pytest.param(-1.0 + LN2, {}, 2 * (LN2 - 0.5), 2 * (LN2 - 0.5), 0.0, id="grown: the gap is to what it is now"),
        pytest.param(-1.0 - LN2, {"max_drop": 0.18}, 0.0, 0.0, 1.0, id="lost 0.184 of its probability: dropped"),
        pytest.param(
            -1.0 - LN2, {"max_drop": 0.19}, -(0.5 + LN2) / 2, -(0.5 + LN2) / 2, 0.0, id="lost less than it may: kept"
        ),
        pytest.param(
            -1.0 - LN2,
            {"max_drop": 0.18, "trust_coefficient": 0.5},
            0.5 * LN2**2,
            -LN2,
            1.0,
            id="dropped, but still pulled back to where it was sampled",
        ),
    ],
)
def test_ref_kl_drops_tokens_that_have_become_unlikely(
    own: float, config: dict[str, float], loss: float, slope: float, dropped: float
) -> None:
    value, gradient, metrics = one_token("ref_kl", own, -1.0, -0.5, **{"trust_coefficient": 0.0, **config})
    assert (value, gradient) == pytest.approx((loss, slope), abs=1e-12)
    assert metrics["dropped_fraction"] == dropped


def test_by_default_a_fifth_may_be_lost_and_a_thousandth_of_the_squared_ratio_is_added() -> None:
    # e^-1 = 0.368: down by 0.2 is a ratio of 0.456
    for ratio, dropped in ((0.46, 0.0), (0.45, 1.0)):
        value, _, metrics = one_token("ref_kl", -1.0 + math.log(ratio), -1.0, -0.5)
        assert metrics["dropped_fraction"] == dropped
        kept = (1 - dropped) * -ratio * (0.5 - math.log(ratio))
        assert value == pytest.approx(kept + 1e-3 * math.log(ratio) ** 2, abs=1e-12)
