"""What is particular to the losses for samples that the policy did not just draw, with numbers worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lossbook import get_loss
from lossbook.datums.errors import LossConfigError, TraceError

from ..cases import assert_rows_equal, datum, evaluated

LN2 = math.log(2)


def slopes(
    name: str, log_ratios: list[float], advantages: list[float], **config: Any
) -> tuple[list[float], dict[str, float]]:
    """The gradient of one response whose tokens' sampler gave them -4 nats, summed over tokens, and the metrics."""
    n = len(log_ratios)
    data = [datum(n, sampling_logprobs=[-4.0] * n, advantages=advantages)]
    _, gradients, metrics = evaluated(get_loss(name, reduction="sum", **config), data, [[x - 4.0 for x in log_ratios]])
    return gradients[0].tolist(), metrics


@pytest.mark.parametrize(
    ("log_ratios", "advantage", "weight"),
    [
        pytest.param([0.0, 0.0], +1.0, 1.0, id="on policy, rewarded: the plain policy gradient"),
        pytest.param([0.0, 0.0], -1.0, 1.0, id="on policy, punished: the plain policy gradient"),
        pytest.param([-LN2, -LN2], +1.0, 1.0, id="a quarter as likely, rewarded: learned in full"),
        pytest.param([-LN2, -LN2], -1.0, 0.25, id="a quarter as likely, punished: a quarter"),
        pytest.param([LN2, LN2], +1.0, 1.0, id="four times as likely, rewarded: no more than in full"),
        pytest.param([LN2, LN2], -1.0, 1.0, id="four times as likely, punished: no more than in full"),
        pytest.param([2.0, -2.0], -1.0, 1.0, id="the response as likely as it was, though its tokens are not"),
        pytest.param([-30.0, 0.0], -1.0, math.exp(-20), id="the logarithm of its ratio is capped"),
    ],
)
def test_topr_tapers_only_what_is_punished(log_ratios: list[float], advantage: float, weight: float) -> None:
    gradient, metrics = slopes("topr", log_ratios, [advantage, advantage])
    assert gradient == pytest.approx([-weight * advantage] * 2)
    assert metrics["positive_weight" if advantage > 0 else "negative_weight"] == pytest.approx(weight)


def test_topr_may_take_each_token_by_its_own_ratio() -> None:
    gradient, metrics = slopes("topr", [LN2, -LN2, -LN2], [-1.0, -1.0, 1.0], level="token")
    assert gradient == pytest.approx([1.0, 0.5, -1.0])
    assert (metrics["positive_weight"], metrics["negative_weight"]) == pytest.approx((1.0, 0.75))


def test_a_token_of_no_advantage_is_in_neither_mean_of_the_weights() -> None:
    log_ratios, advantages = [LN2, -LN2, -2 * LN2, -3 * LN2], [0.25, 0.0, -0.25, -2.0]
    _, metrics = slopes("topr", log_ratios, advantages, level="token", positive_low=0.0, positive_high=4.0)
    assert (metrics["positive_weight"], metrics["negative_weight"]) == pytest.approx((2.0, (1 / 4 + 1 / 8) / 2))


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "weight"),
    [
        pytest.param(-2.0, +1.0, 0.5, id="rewarded, below its band"),
        pytest.param(0.25, +1.0, math.exp(0.25), id="rewarded, inside"),
        pytest.param(2.0, +1.0, 1.5, id="rewarded, above"),
        pytest.param(-2.0, -1.0, 0.25, id="punished, below its band"),
        pytest.param(0.5, -1.0, math.exp(0.5), id="punished, inside"),
        pytest.param(2.0, -1.0, 3.0, id="punished, above"),
    ],
)
def test_topr_has_a_band_for_each_sign(log_ratio: float, advantage: float, weight: float) -> None:
    bands = {"positive_low": 0.5, "positive_high": 1.5, "negative_low": 0.25, "negative_high": 3.0}
    gradient, _ = slopes("topr", [log_ratio], [advantage], **bands)
    assert gradient == pytest.approx([-weight * advantage])


def test_topr_divides_by_responses_unless_told_otherwise() -> None:
    data = [
        datum(2, sampling_logprobs=[-1.0, -1.0], advantages=[1.0, 1.0], weights=[1.0, 1.0]),
        datum(1, sampling_logprobs=[-1.0], advantages=[-1.0], weights=[1.0]),
    ]
    value, gradients, _ = evaluated(get_loss("topr"), data, [[-1.0, -1.0], [-1.0]])
    assert value == pytest.approx((2 - 1) / 2)
    assert_rows_equal(gradients, [[-0.5, -0.5], [0.5]], 1e-12)


def test_the_bounds_of_topr_lie_on_either_side_of_1() -> None:
    for wrong in ({"positive_low": 1.5}, {"positive_high": 0.5}, {"negative_low": -0.1}, {"negative_high": 0.9}):
        with pytest.raises(LossConfigError, match="bound on the ratio itself"):
            get_loss("topr", **wrong)


def futures(log_ratios: list[float], half_life: float) -> list[float]:
    """Σ_{k ≥ t} 2^(-(k - t)/half_life) log r_k, by hand."""
    return [
        sum(x * 2 ** (-(k - t) / half_life) for k, x in enumerate(log_ratios) if k >= t) for t in range(len(log_ratios))
    ]


def test_fipo_weighs_a_token_by_what_became_of_its_future() -> None:
    # With a half-life of one token the sums are 0.02, 0.1, 0.1, -0.2 and 0, so the weights 1.0202, 1.1052, 1.1052, 0.8187, 1.
    log_ratios = [-0.03, 0.05, 0.2, -0.2, 0.0]
    assert futures(log_ratios, 1.0) == pytest.approx([0.02, 0.1, 0.1, -0.2, 0.0])
    bounds = {"half_life": 1.0, "weight_low": 0.5, "weight_high": 2.0, "clip_high": 1.3}
    gradient, metrics = slopes("fipo", log_ratios, [1.0] * 5, **bounds)
    expected = [
        -math.exp(-0.03 + 0.02),
        -math.exp(0.05 + 0.1),
        -math.exp(0.2 + 0.1),
        -math.exp(-0.2 - 0.2),
        -1.0,
    ]
    assert gradient == pytest.approx(expected, rel=1e-6)
    assert metrics["future_kl"] == pytest.approx(0.004, rel=1e-5)
    assert metrics["future_weight"] == pytest.approx(sum(map(math.exp, [0.02, 0.1, 0.1, -0.2, 0.0])) / 5, rel=1e-6)


def test_a_half_life_is_where_a_later_token_counts_half() -> None:
    for distance in (1, 2, 3, 5, 8):
        log_ratios = [0.0] * distance + [0.1]
        gradient, _ = slopes("fipo", log_ratios, [1.0] * (distance + 1), half_life=float(distance))
        assert gradient[0] == pytest.approx(-math.exp(0.05), rel=1e-6)


@pytest.mark.parametrize(
    ("log_ratio", "config", "weight"),
    [
        pytest.param(0.1, {}, math.exp(0.1), id="inside"),
        pytest.param(-0.1, {}, 1.0, id="below the lower bound, 1 by default"),
        pytest.param(-0.1, {"weight_low": 0.8}, math.exp(-0.1), id="inside a wider band"),
        pytest.param(0.25, {"clip_high": 2.0}, 1.2, id="above the upper bound, 1.2 by default"),
    ],
)
def test_the_weight_of_fipo_is_bounded(log_ratio: float, config: dict[str, float], weight: float) -> None:
    gradient, metrics = slopes("fipo", [log_ratio], [1.0], **config)
    assert gradient == pytest.approx([-weight * math.exp(log_ratio)], rel=1e-6)
    assert metrics["future_weight"] == pytest.approx(weight, rel=1e-6)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "config", "weight"),
    [
        pytest.param(1.5, -1.0, {}, 1.0, id="punished, beyond 4: no more than 1"),
        pytest.param(1.3, -1.0, {}, 1.2, id="punished, below 4: as any other"),
        pytest.param(1.5, -1.0, {"safe_ratio": None}, 1.2, id="punished, beyond 4, with the guard off"),
        pytest.param(1.5, +1.0, {"clip_high": 9.0}, 1.2, id="rewarded, beyond 4: as any other"),
    ],
)
def test_a_punished_token_that_has_become_far_more_likely_is_not_amplified(
    log_ratio: float, advantage: float, config: dict[str, Any], weight: float
) -> None:
    gradient, _ = slopes("fipo", [log_ratio], [advantage], **config)
    assert gradient == pytest.approx([-weight * math.exp(log_ratio) * advantage], rel=1e-6)


def test_the_guard_of_fipo_does_not_silence_a_token() -> None:
    # The sum is ln 5 - 3 = -1.39, so f would be 0.25; the guard holds it at 0.8.
    log_ratios = [math.log(5), -3.0]
    gradient, _ = slopes("fipo", log_ratios, [-1.0, -1.0], half_life=1e9, weight_low=0.0)
    assert gradient[0] == pytest.approx(0.8 * 5, rel=1e-6)


def test_a_token_beyond_the_dual_clip_is_no_part_of_anothers_future() -> None:
    # Ratios 1, 5 and 0.9; 5 is beyond 3, so the first token's sum is log 0.9, and its own is log 0.9 too.
    log_ratios = [0.0, math.log(5), math.log(0.9)]
    options = {"half_life": 1e9, "weight_low": 0.5}
    gradient, metrics = slopes("fipo", log_ratios, [1.0, 1.0, 1.0], dual_clip=3.0, **options)
    assert gradient == pytest.approx([-0.9, 0.0, -0.9 * 0.9], rel=1e-6)
    assert metrics["future_kl"] == pytest.approx(math.log(0.9), rel=1e-6)
    gradient, _ = slopes("fipo", log_ratios, [1.0, 1.0, 1.0], **options)
    assert gradient == pytest.approx([-1.2, 0.0, -0.9 * 0.9], rel=1e-6)


def test_exactly_at_its_bounds_fipo_treats_a_token_as_inside() -> None:
    # 0.25 nats is exact, so r is exactly the bound that is taken from it.
    bound = float(torch.tensor(0.25, dtype=torch.float64).exp())
    _, metrics = slopes("fipo", [0.25], [1.0], dual_clip=bound)
    assert metrics["future_kl"] == 0.25
    _, metrics = slopes("fipo", [0.25], [-1.0], safe_ratio=bound)
    assert metrics["future_weight"] == pytest.approx(1.2)
    _, metrics = slopes("fipo", [0.25], [-1.0], safe_ratio=bound * (1 - 1e-12))
    assert metrics["future_weight"] == 1.0


def test_the_guard_of_fipo_is_about_punished_tokens_only() -> None:
    _, metrics = slopes("fipo", [1.5], [0.0])
    assert metrics["future_weight"] == pytest.approx(1.2)


def test_a_future_ends_with_its_response() -> None:
    data = [
        datum(3, sampling_logprobs=[-4.0] * 3, advantages=[1.0] * 3),
        datum(2, sampling_logprobs=[-4.0] * 2, advantages=[1.0] * 2),
    ]
    log_ratios = [[0.01, 0.02, 0.03], [0.05, 0.07]]
    loss = get_loss("fipo", reduction="sum", half_life=2.0)
    _, gradients, _ = evaluated(loss, data, [[x - 4.0 for x in row] for row in log_ratios])
    for row, gradient in zip(log_ratios, gradients, strict=True):
        expected = [-math.exp(x + future) for x, future in zip(row, futures(row, 2.0), strict=True)]
        torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_fipo_says_why_it_is_no_graph_of_one_datum() -> None:
    with pytest.raises(TraceError, match=r"seqs\.index has no form for one datum"):
        get_loss("fipo", reduction="sum").trace()
    assert get_loss("topr", reduction="sum").trace().inputs
