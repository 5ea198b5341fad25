"""What is particular to the losses that drop the tokens farthest from their sampler, with numbers worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import get_loss
from lossbook.losses.policy import m2po

from ..cases import assert_rows_equal, datum, evaluated


def moved(before: float, now: float, advantage: float, **config: Any) -> tuple[float, float, dict[str, float]]:
    """prime_ipo's value and slope of one token whose probability went from `before` to `now`, and its metrics."""
    data = [datum(1, sampling_logprobs=[math.log(before)], advantages=[advantage])]
    value, gradients, metrics = evaluated(get_loss("prime_ipo", reduction="sum", **config), data, [[math.log(now)]])
    return value, float(gradients[0][0]), metrics


@pytest.mark.parametrize(
    ("before", "now", "advantage", "weight"),
    [
        pytest.param(0.5, 0.75, +1.0, 1.5, id="risen by 0.25, rewarded: pushed on by its ratio"),
        pytest.param(0.5, 0.9, +1.0, 0.0, id="risen by 0.4, rewarded: dropped"),
        pytest.param(0.5, 0.9, -1.0, 0.0, id="risen by 0.4, punished: dropped as well, unlike in dppo"),
        pytest.param(0.9, 0.5, +1.0, 0.0, id="fallen by 0.4, rewarded: dropped"),
        pytest.param(0.01, 0.1, +1.0, 10.0, id="a rare token ten times as likely: pushed on"),
    ],
)
def test_prime_ipo_drops_a_token_whose_probability_has_moved_too_far_whatever_its_advantage(
    before: float, now: float, advantage: float, weight: float
) -> None:
    value, slope, metrics = moved(before, now, advantage, kl_coefficient=0.0)
    assert (value, slope) == pytest.approx((-weight * advantage, -weight * advantage), rel=1e-6)
    assert metrics["mask_fraction"] == (weight == 0)


@pytest.mark.parametrize(
    ("now", "advantage", "value", "slope"),
    [
        # log r = ln 2, its square 0.480453; 0.5 times that is 0.2402265, with slope 2 * 0.5 * ln 2 = 0.6931472.
        pytest.param(0.4, +1.0, -2.0 + 0.2402265, -2.0 + 0.6931472, id="kept: both terms"),
        pytest.param(0.4, 0.0, 0.2402265, 0.6931472, id="no advantage: only pulled back"),
        # log r = ln 4, its square 1.921812.
        pytest.param(0.8, +1.0, 0.9609060, 1.3862944, id="dropped: still pulled back"),
    ],
)
def test_prime_ipo_pulls_every_token_back_to_its_sampler(
    now: float, advantage: float, value: float, slope: float
) -> None:
    own, gradient, metrics = moved(0.2, now, advantage, kl_coefficient=0.5)
    assert (own, gradient) == pytest.approx((value, slope), rel=1e-6)
    assert metrics["squared_log_ratio"] == pytest.approx(math.log(now / 0.2) ** 2, rel=1e-6)


def test_a_token_that_has_moved_by_exactly_delta_is_kept() -> None:
    stored = torch.tensor(math.log(0.5)).double().exp()  # as float32 holds it
    change = abs(float(torch.tensor(math.log(0.75), dtype=torch.float64).exp() - stored))
    assert moved(0.5, 0.75, 1.0, delta=change, kl_coefficient=0.0)[1] != 0
    assert moved(0.5, 0.75, 1.0, delta=change * (1 - 1e-12), kl_coefficient=0.0)[1] == 0


def kept(log_ratios: list[float], advantages: list[float], **config: Any) -> tuple[list[bool], dict[str, float]]:
    """Which tokens m2po leaves a gradient, which is -r A there, and its metrics."""
    n = len(log_ratios)
    data = [datum(n, sampling_logprobs=[-4.0] * n, advantages=advantages)]
    _, gradients, metrics = evaluated(
        get_loss("m2po", reduction="sum", **config), data, [[x - 4.0 for x in log_ratios]]
    )
    ratios = torch.tensor(log_ratios, dtype=torch.float64).exp() * torch.tensor(advantages, dtype=torch.float64)
    is_kept = gradients[0] != 0
    assert_rows_equal([gradients[0][is_kept]], [-ratios[is_kept]], 1e-6)
    return is_kept.tolist(), metrics


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        # Squares 1, 0.25, 0.0625, 0: their mean is 0.328125; without the largest 0.104167; without two 0.03125; then 0.
        pytest.param(0.33, [True, True, True, True], id="the mean is below: all are kept"),
        pytest.param(0.32, [True, False, True, True], id="the largest goes"),
        pytest.param(0.104, [True, False, False, True], id="the two largest go"),
        pytest.param(0.03125, [True, False, False, False], id="a mean equal to the threshold is not below it"),
        pytest.param(1e-9, [True, False, False, False], id="a token on policy is never too far"),
    ],
)
def test_m2po_drops_the_fewest_tokens_that_bring_the_mean_below_its_threshold(
    threshold: float, expected: list[bool]
) -> None:
    is_kept, metrics = kept([0.0, 1.0, -0.5, 0.25], [1.0, 1.0, 1.0, -1.0], threshold=threshold)
    assert is_kept == expected
    assert metrics["second_moment"] == 0.328125
    assert metrics["mask_fraction"] == expected.count(False) / 4


def test_equal_tokens_are_dropped_together() -> None:
    # Squares 0.25, 0.25, 0.0625: mean 0.1875. Dropping one 0.25 would leave 0.15625, below 0.16, but which one?
    assert kept([0.5, -0.5, 0.25], [1.0, 1.0, 1.0], threshold=0.16)[0] == [False, False, True]


def test_a_batch_whose_nearest_token_is_too_far_is_dropped_whole() -> None:
    is_kept, metrics = kept([0.5, -0.75], [1.0, 1.0], threshold=0.25)
    assert (is_kept, metrics["mask_fraction"]) == ([False, False], 1.0)


def test_m2po_may_count_only_tokens_that_have_moved_the_way_they_are_pushed() -> None:
    # Of the five, the first (fallen, rewarded) and the last (no advantage) are not pushed on. The others' squares are 1,
    # 0.25 and 0.0625: mean 0.4375, without the largest 0.15625.
    log_ratios, advantages = [-2.0, 1.0, -0.5, 0.25, 1.5], [1.0, 2.0, -1.0, 1.0, 0.0]
    pushed = {"threshold": 0.2, "only_pushed": True}
    assert kept(log_ratios, advantages, **pushed)[0] == [
        True,
        False,
        True,
        True,
        False,
    ]  # the last has no gradient anyway
    _, metrics = kept(log_ratios, advantages, **pushed)
    assert metrics["mask_fraction"] == 0.2
    assert metrics["second_moment"] == (4 + 1 + 0.25 + 0.0625 + 2.25) / 5


def test_a_token_on_policy_is_not_among_the_pushed_ones() -> None:
    # Squares 1 and 0.25 of the two that have moved; with the first one's 0 the mean without the largest would be 0.125.
    pushed = {"threshold": 0.2, "only_pushed": True}
    assert kept([0.0, 1.0, 0.5], [1.0, 1.0, 1.0], **pushed)[0] == [True, False, False]


def test_m2po_of_no_token_is_no_loss() -> None:
    losses, _ = m2po(*[torch.zeros(0, dtype=torch.float64)] * 3)
    assert losses.shape == (0,)


@given(squares=st.lists(st.integers(0, 32), min_size=1, max_size=12), threshold=st.integers(1, 50), order=st.randoms())
@settings(max_examples=30)
def test_m2po_keeps_a_mean_below_its_threshold_in_any_order(squares: list[int], threshold: int, order: Any) -> None:
    log_ratios = [x / 8 for x in squares]
    limit = threshold / 64
    shuffled = log_ratios.copy()
    order.shuffle(shuffled)
    first, second = (
        sorted(x for x, stays in zip(xs, kept(xs, [1.0] * len(xs), threshold=limit)[0], strict=True) if stays)
        for xs in (log_ratios, shuffled)
    )
    assert first == second
    left = [x * x for x in first]
    assert not left or sum(left) / len(left) < limit
    next_up = [x * x for x in log_ratios if not first or x > first[-1]]
    if next_up:  # with the next one, and all that equal it, the mean would reach the threshold
        nearest = [x for x in next_up if x == min(next_up)]
        assert (sum(left) + sum(nearest)) / (len(left) + len(nearest)) >= limit
