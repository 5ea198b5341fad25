"""What is particular to the losses that weigh, mask or bend a token's ratio instead of clipping it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lossbook import get_loss

from ..cases import assert_rows_equal, datum, evaluated, one_token


@pytest.mark.parametrize(
    ("ratio", "advantage", "config", "weight", "clipped"),
    [
        pytest.param(1.0, +1.0, {}, 1.0, 0, id="on policy: the plain policy gradient"),
        pytest.param(3.0, -2.0, {}, 3.0, 0, id="three times as likely: counts three times"),
        pytest.param(5.0, +1.0, {}, 4.0, 1, id="five times as likely, rewarded: counts four times, and still counts"),
        pytest.param(5.0, -1.0, {}, 4.0, 1, id="five times as likely, punished: the same"),
        pytest.param(0.5, +1.0, {"clip_low": 0.8}, 0.8, 1, id="below the lower bound: counts as much as there"),
        pytest.param(0.01, -1.0, {}, 0.01, 0, id="no lower bound by default"),
    ],
)
def test_cispo_bounds_the_weight_and_silences_no_token(
    ratio: float, advantage: float, config: dict[str, float], weight: float, clipped: float
) -> None:
    value, slope, metrics = one_token("cispo", ratio, advantage, **config)
    assert slope == pytest.approx(-weight * advantage)
    assert value == pytest.approx(-weight * advantage * (math.log(ratio) - 4))
    assert metrics["clip_fraction"] == clipped


@pytest.mark.parametrize(
    ("ratio", "advantage", "config", "weight"),
    [
        pytest.param(1.1, +1.0, {}, 1.1, id="inside: weighed by its ratio"),
        pytest.param(1.3, +1.0, {}, 0.0, id="risen and rewarded: dropped"),
        pytest.param(1.3, -1.0, {}, 0.0, id="risen and punished: dropped all the same"),
        pytest.param(0.7, +1.0, {}, 0.0, id="fallen and rewarded: dropped"),
        pytest.param(1.0, +1.0, {"clip_high": 1.0}, 0.0, id="exactly at the upper bound: outside"),
        pytest.param(1.0, +1.0, {"clip_low": 1.0}, 0.0, id="exactly at the lower bound: outside"),
    ],
)
def test_rollout_is_drops_every_token_outside_its_bounds(
    ratio: float, advantage: float, config: dict[str, float], weight: float
) -> None:
    value, slope, metrics = one_token("rollout_is", ratio, advantage, **config)
    assert slope == pytest.approx(-weight * advantage)
    assert value == pytest.approx(-weight * advantage * (math.log(ratio) - 4))
    assert metrics["clip_fraction"] == (weight == 0)


@pytest.mark.parametrize(
    ("advantage", "value", "slope"),
    [
        pytest.param(2.0, 2.0 + 0.0625, -2.0 + 0.25, id="rewarded: pushed up, held back by beta times the distance"),
        pytest.param(0.0, 0.0625, 0.25, id="no advantage: only held back"),
    ],
)
def test_dro_holds_the_policy_near_its_sampler_by_a_square(advantage: float, value: float, slope: float) -> None:
    # Half a nat above the sampler: 0.5 * 0.5 * 0.5² = 0.0625, with slope 0.5 * 0.5.
    data = [datum(1, sampling_logprobs=[-1.5], advantages=[advantage])]
    loss_value, gradients, metrics = evaluated(get_loss("dro", beta=0.5), data, [[-1.0]])
    assert loss_value == pytest.approx(value)
    assert_rows_equal(gradients, [[slope]], 1e-12)
    assert metrics["quadratic_penalty"] == 0.0625


def moved(before: float, now: float, advantage: float, **config: Any) -> tuple[float, dict[str, float]]:
    """dppo's slope of one token whose probability went from `before` to `now`, and its metrics."""
    data = [datum(1, sampling_logprobs=[math.log(before)], advantages=[advantage])]
    value, gradients, metrics = evaluated(get_loss("dppo", reduction="sum", **config), data, [[math.log(now)]])
    assert value == pytest.approx(float(gradients[0][0]))  # -r A is its own slope
    return float(gradients[0][0]), metrics


@pytest.mark.parametrize(
    ("before", "now", "advantage", "slope"),
    [
        pytest.param(0.5, 0.8, +1.0, 0.0, id="risen by 0.3, rewarded: no further push"),
        pytest.param(0.5, 0.8, -1.0, +1.6, id="risen by 0.3, punished: pulled back in full"),
        pytest.param(0.5, 0.65, +1.0, -1.3, id="risen by 0.15, rewarded: pushed on, beyond PPO's bound"),
        pytest.param(0.01, 0.1, +1.0, -10.0, id="a rare token ten times as likely: pushed on"),
        pytest.param(0.5, 0.2, -1.0, 0.0, id="fallen by 0.3, punished: no further push"),
        pytest.param(0.5, 0.2, +1.0, -0.4, id="fallen by 0.3, rewarded: pulled back in full"),
        pytest.param(0.5, 0.8, 0.0, 0.0, id="no advantage: nothing to push"),
    ],
)
def test_dppo_masks_tokens_by_how_far_their_probability_has_moved(
    before: float, now: float, advantage: float, slope: float
) -> None:
    gradient, metrics = moved(before, now, advantage)
    assert gradient == pytest.approx(slope, rel=1e-6)
    is_masked = slope == 0 and advantage != 0
    assert metrics["mask_fraction"] == is_masked
    assert (metrics["mask_fraction_high"], metrics["mask_fraction_low"]) == (
        is_masked and advantage > 0,
        is_masked and advantage < 0,
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight"),
    [
        pytest.param(1.5, -1.0, 1.5, id="below the cap: counts by its ratio"),
        pytest.param(3.0, -1.0, 3.0, id="at the cap"),
        pytest.param(20.0, -1.0, 3.0, id="beyond the cap, pulled back: counts three times, and still counts"),
        pytest.param(8.0, +1.0, 3.0, id="beyond the cap, pushed on, for its probability has hardly moved"),
        pytest.param(20.0, +1.0, 0.0, id="moved by more than delta: masked, whatever the cap"),
    ],
)
def test_dppo_may_truncate_the_ratio_without_removing_the_gradient(
    ratio: float, advantage: float, weight: float
) -> None:
    # A probability of exp(-4) = 0.0183: eight times that is 0.128 more, twenty times 0.348 more, of 0.2 allowed.
    value, slope, _ = one_token("dppo", ratio, advantage, ratio_cap=3.0)
    assert slope == pytest.approx(-weight * advantage)
    assert value == pytest.approx(-weight * advantage * (math.log(ratio) - 4))


@pytest.mark.parametrize("side", ["delta_low", "delta_high"])
def test_a_token_that_has_moved_by_exactly_delta_keeps_its_gradient(side: str) -> None:
    before, now, advantage = (0.75, 0.5, -1.0) if side == "delta_low" else (0.5, 0.75, 1.0)
    stored = torch.tensor(math.log(before)).double().exp()  # as float32 holds it
    change = abs(float(torch.tensor(math.log(now), dtype=torch.float64).exp() - stored))
    other = {"delta_low": 1e-9, "delta_high": 1e-9}
    assert moved(before, now, advantage, **{**other, side: change})[0] != 0
    assert moved(before, now, advantage, **{**other, side: change * (1 - 1e-12)})[0] == 0


@pytest.mark.parametrize(
    ("before", "now", "advantage", "delta", "slope"),
    [
        # 0.5 ln(0.5/0.8) + 0.5 ln(0.5/0.2) = 0.2231 nats; 0.8 ln(0.8/0.5) + 0.2 ln(0.2/0.5) = 0.1927.
        pytest.param(0.5, 0.8, +1.0, 0.22, 0.0, id="0.2231 nats up, rewarded, of 0.22 allowed: no push"),
        pytest.param(0.5, 0.8, +1.0, 0.23, -1.6, id="0.2231 nats up, rewarded, of 0.23 allowed: pushed on"),
        pytest.param(0.8, 0.5, -1.0, 0.19, 0.0, id="0.1927 nats down, punished, of 0.19 allowed: no push"),
        pytest.param(0.8, 0.5, -1.0, 0.2, 0.625, id="0.1927 nats down, punished, of 0.2 allowed: pushed on"),
        pytest.param(0.8, 0.5, +1.0, 0.01, -0.625, id="moved against its advantage: pulled back in full"),
    ],
)
def test_dppo_may_measure_by_the_kl_divergence_of_two_outcomes(
    before: float, now: float, advantage: float, delta: float, slope: float
) -> None:
    gradient, _ = moved(before, now, advantage, divergence="binary_kl", delta_low=delta, delta_high=delta)
    assert gradient == pytest.approx(slope, rel=1e-6)


def test_dppo_of_a_token_that_has_become_certain_is_finite() -> None:
    data = [datum(1, sampling_logprobs=[math.log(0.9)], advantages=[1.0])]
    value, gradients, metrics = evaluated(get_loss("dppo", divergence="binary_kl", reduction="sum"), data, [[0.0]])
    # 0.9 ln 0.9 + 0.1 ln(0.1 / 1e-8) = 1.517 nats, of 0.2 allowed.
    assert (value, float(gradients[0]), metrics["mask_fraction"]) == (0, 0, 1)


@pytest.mark.parametrize("ratio", [0.05, 20.0], ids=["fallen", "risen"])
def test_dppo_masks_no_token_that_nothing_pushes(ratio: float) -> None:
    # Probability exp(-4) at most 0.37 away: beyond a delta of 0.01, but an advantage of 0 pushes neither way.
    _, _, metrics = one_token("dppo", ratio, 0.0, delta_low=0.01, delta_high=0.01)
    assert (metrics["mask_fraction_high"], metrics["mask_fraction_low"]) == (0, 0)


def slope_at(x: float) -> float:
    """Of the logistic function."""
    return math.exp(-x) / (1 + math.exp(-x)) ** 2


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        pytest.param(1.0, +1.0, -2.0, -1.0, id="on policy, rewarded: value 2, gradient of REINFORCE"),
        pytest.param(1.0, -1.0, 2 / 1.05, 1.0, id="on policy, punished: the same gradient at another temperature"),
        pytest.param(2.0, +1.0, -4 / (1 + math.exp(-1)), -8 * slope_at(1), id="twice as likely: the push falls off"),
        pytest.param(2.0, -1.0, 4 / 1.05 / (1 + math.exp(-1.05)), 8 * slope_at(1.05), id="and faster when punished"),
        pytest.param(2.0, 0.0, 0.0, 0.0, id="no advantage: nothing to push"),
    ],
)
def test_sapo_closes_its_gate_smoothly(ratio: float, advantage: float, value: float, slope: float) -> None:
    loss_value, gradient, metrics = one_token("sapo", ratio, advantage)
    assert (loss_value, gradient) == pytest.approx((value, slope))
    temperature = 1.0 if advantage > 0 else 1.05
    assert metrics["gate_mean"] == pytest.approx(4 * slope_at(temperature * (ratio - 1)))


def test_a_token_of_which_the_sampler_was_sure_has_moved_by_a_finite_number() -> None:
    # binary KL from (1, 0) to (1/2, 1/2): ln 2
    given = {"sampling_logprobs": torch.zeros(1, 1), "advantages": [-1.0], "mask": torch.ones(1, 1)}
    for delta, masked in ((0.6, 1), (0.7, 0)):
        loss = get_loss("dppo", divergence="binary_kl", delta_low=delta)
        _, metrics = loss.on_tensors(torch.full((1, 1), 0.5).log(), **given)
        assert metrics["mask_fraction_low"] == masked
