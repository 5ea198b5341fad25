"""What is particular to the losses that are PPO's clip: their defaults, the dual clip, and the length of dr_grpo."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lossbook import get_loss
from lossbook.datums.errors import LossConfigError

from ..cases import assert_rows_equal, datum, evaluated, one_token


@pytest.mark.parametrize(
    ("name", "reduction", "settings"),
    [
        ("grpo", "token-mean", {"clip_low": 0.8, "clip_high": 1.2, "kl_coefficient": 0.001, "kl_estimator": "k3"}),
        ("dapo", "token-mean", {"clip_low": 0.8, "clip_high": 1.28, "dual_clip": None}),
        ("gspo-token", "seq-mean-token-mean", {"clip_low": 1 - 3e-4, "clip_high": 1 + 4e-4}),
        ("ppo", "sum", {"clip_low": 0.8, "clip_high": 1.2}),
        ("bnpo", "token-mean", {"clip_low": 0.8, "clip_high": 1.2}),
        ("dual_clip", "token-mean", {"clip_low": 0.8, "clip_high": 1.2, "dual_clip": 3.0}),
        ("cispo", "sum", {"clip_low": 0.0, "clip_high": 4.0}),
        ("dro", "sum", {"beta": 0.05}),
        (
            "dppo",
            "token-mean",
            {"divergence": "total_variation", "delta_low": 0.2, "delta_high": 0.2, "ratio_cap": None},
        ),
        ("sapo", "seq-mean-token-mean", {"temperature_positive": 1.0, "temperature_negative": 1.05}),
        ("rloo", "mean", {"clip_low": 0.8, "clip_high": 1.2}),
        ("geo_mean", "mean", {"log_clip_low": 0.4, "log_clip_high": 0.4}),
        (
            "vespo",
            "token-mean",
            {"k_positive": 2.0, "lambda_positive": 3.0, "k_negative": 3.0, "lambda_negative": 2.0},
        ),
        ("kl_cov", "token-mean", {"share": 0.0002, "kl_coefficient": 0.1}),
    ],
)
def test_the_defaults_are_those_of_the_field(name: str, reduction: str, settings: dict[str, Any]) -> None:
    loss = get_loss(name)
    assert loss.reduction == reduction
    assert loss.settings == settings


@pytest.mark.parametrize("name", ["dual_clip", "dapo"])
@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "capped"),
    [
        pytest.param(5.0, -0.5, 1.5, 0.0, 1, id="punished and five times as likely: held at 3, where PPO loses 2.5"),
        pytest.param(2.5, -0.5, 1.25, 1.25, 0, id="punished, below the cap: pulled back in full"),
        pytest.param(5.0, +0.5, -0.6, 0.0, 0, id="rewarded: PPO's own bound is the tighter"),
        pytest.param(5.0, 0.0, 0.0, 0.0, 0, id="no advantage: nothing to cap"),
        pytest.param(0.5, -0.5, 0.4, 0.0, 0, id="punished and fallen: PPO's own bound"),
    ],
)
def test_the_dual_clip_bounds_how_hard_a_punished_token_is_pulled_back(
    name: str, ratio: float, advantage: float, loss: float, gradient: float, capped: float
) -> None:
    value, slope, metrics = one_token(name, ratio, advantage, dual_clip=3.0, clip_high=1.2)
    assert (value, slope) == pytest.approx((loss, gradient))
    assert metrics["dual_clip_fraction"] == capped


def test_exactly_at_the_dual_clip_a_punished_token_keeps_its_gradient() -> None:
    bound = float(torch.tensor(1.5, dtype=torch.float64).exp())
    data = [datum(1, sampling_logprobs=[-4.0], advantages=[-2.0])]
    value, gradients, metrics = evaluated(get_loss("dual_clip", reduction="sum", dual_clip=bound), data, [[-2.5]])
    assert (value, gradients[0].tolist(), metrics["dual_clip_fraction"]) == (2 * bound, [2 * bound], 0)


def test_dapo_without_a_dual_clip_pulls_back_without_bound_and_reports_no_such_metric() -> None:
    value, slope, metrics = one_token("dapo", 5.0, -0.5)
    assert (value, slope) == pytest.approx((2.5, 2.5))
    assert "dual_clip_fraction" not in metrics


def test_a_dual_clip_is_a_ratio_above_1() -> None:
    with pytest.raises(LossConfigError, match=r"dual_clip=1\.0: input should be greater than 1"):
        get_loss("dual_clip", dual_clip=1.0)


@pytest.mark.parametrize(
    ("ratio", "gradient"),
    [
        pytest.param(1.25, -1.25, id="1.25, which PPO would clip, is within DAPO's bounds"),
        pytest.param(1.3, 0.0, id="1.3 is beyond 1.28"),
    ],
)
def test_dapo_has_more_room_above(ratio: float, gradient: float) -> None:
    assert one_token("dapo", ratio, 1.0)[1] == pytest.approx(gradient)


def test_dr_grpo_says_that_it_needs_a_length() -> None:
    with pytest.raises(LossConfigError) as caught:
        get_loss("dr_grpo")
    assert str(caught.value) == (
        "dr_grpo: reduction 'seq-mean-token-sum-norm' needs norm_length, the constant number of tokens to divide by"
    )


def test_dr_grpo_divides_by_responses_times_the_length_however_long_they_are() -> None:
    data = [datum(n, sampling_logprobs=[-1.0] * n, advantages=[1.0] * n, weights=[1] * n) for n in (1, 3)]
    value, gradients, _ = evaluated(get_loss("dr_grpo", norm_length=8), data, [[-1.0], [-1.0] * 3])
    assert value == -4 / (2 * 8)
    assert_rows_equal(gradients, [[-1 / 16], [-1 / 16] * 3], 1e-12)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("gpg", (1.0 - 2.0 * 3.0) / 2, id="gpg: a mean over tokens"),
        pytest.param("reinforce", 1.0 - 2.0 * 3.0, id="reinforce: a sum"),
    ],
)
def test_the_plain_policy_gradient_is_minus_the_advantage(name: str, value: float) -> None:
    data = [datum(2, advantages=[1.0, -2.0], weights=[1, 1])]
    loss_value, gradients, _ = evaluated(get_loss(name), data, [[-1.0, -3.0]])
    assert loss_value == value
    assert_rows_equal(gradients, [[-1.0, 2.0]] if name == "reinforce" else [[-0.5, 1.0]], 0)
