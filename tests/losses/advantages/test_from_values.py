"""Advantages over the steps of a sample: numbers by hand, and what they become in the limits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook.datums.errors import LengthMismatchError, LossConfigError, NonFiniteLossInput
from lossbook.losses.advantages.from_values import discounted, gae, igpo, kl_penalized_advantages

NAN = float("nan")
numbers = st.floats(-4, 4)


@pytest.mark.parametrize(
    ("discount", "expected"),
    [
        pytest.param(0.0, [1, 2, 4], id="0: each alone"),
        pytest.param(0.5, [3, 4, 4], id="a half: 1 + 2/2 + 4/4"),
        pytest.param(1.0, [7, 6, 4], id="1: all that is to come"),
    ],
)
def test_a_discounted_sum_is_what_is_to_come(discount: float, expected: list[float]) -> None:
    assert discounted([1, 2, 4], discount).tolist() == expected
    assert discounted([], discount).tolist() == []


@pytest.mark.parametrize(
    ("options", "advantages"),
    [
        # δ = r_t + discount V_{t+1} - V_t = [0 + 3 - 2, 1 + 0 - 3] without discount.
        pytest.param({"decay": 0.0}, [1, -2], id="decay 0: one step"),
        pytest.param({"decay": 1.0}, [-1, -2], id="decay 1: the return 1, less the value"),
        pytest.param({"decay": 0.5}, [0, -2], id="decay a half"),
        pytest.param({}, [1 - 0.95 * 2, -2], id="decay .95 by default"),
        pytest.param(
            {"decay": 1.0, "discount": 0.5}, [-1.5, -2], id="a discount: δ = [3/2 - 2, -2]; half of what follows"
        ),
        pytest.param({"decay": 0.0, "last_value": 4.0}, [1, 2], id="cut off, not ended: the last value counts"),
    ],
)
def test_gae_is_its_formula(options: dict[str, float], advantages: list[float]) -> None:
    computed, returns = gae([0, 1], [2, 3], **options)
    assert computed.tolist() == pytest.approx(advantages)
    assert returns.tolist() == pytest.approx([advantages[0] + 2, advantages[1] + 3])


def test_gae_of_nothing_is_nothing() -> None:
    assert [x.tolist() for x in gae([], [])] == [[], []]


@given(steps=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6), discount=st.floats(0, 1), last=numbers)
@settings(max_examples=40)
def test_gae_with_decay_1_is_the_return_less_the_value(steps: list, discount: float, last: float) -> None:
    rewards, values = np.array([r for r, _ in steps]), np.array([v for _, v in steps])
    tail = discount ** np.arange(len(steps) + 1)
    returns = [tail[: len(steps) - t] @ rewards[t:] + tail[len(steps) - t] * last for t in range(len(steps))]
    computed, targets = gae(rewards, values, discount=discount, decay=1.0, last_value=last)
    np.testing.assert_allclose(computed.numpy(), returns - values, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(targets.numpy(), returns, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # d = [1, 3 | 2, -]: masked entries out, mean 2.
        pytest.param({}, [[1 + 0.5, 1 - 0.5], [-1.0, -1.0]], id="centred: above the mean is punished, below rewarded"),
        pytest.param({"is_centred": False}, [[0.5, -0.5], [-2.0, -1.0]], id="plain: all are pushed down"),
        pytest.param({"discount": 1.0}, [[1.0, 0.5], [-1.0, -1.0]], id="discounted: what follows counts too"),
        pytest.param(
            {"estimator": "k2", "is_centred": False},
            [[1 - 0.25, 1 - 2.25], [-1 - 1.0, -1.0]],
            id="another estimate of the KL",
        ),
    ],
)
def test_a_kl_penalty_is_taken_off_the_advantages(options: dict[str, Any], expected: list[list[float]]) -> None:
    rows = kl_penalized_advantages(
        [1.0, [-1.0, -1.0]],
        [[-1.0, -2.0], [-0.5, NAN]],
        [[-2.0, -5.0], [-2.5, -1.0]],
        coefficient=0.5,
        weights=[[1, 0.25], [1, 0]],
        **options,
    )
    assert [row.tolist() for row in rows] == expected


def test_a_centred_penalty_moves_no_mean_and_no_weights_mean_all() -> None:
    rows = kl_penalized_advantages([0.0, 0.0], [[-1.0], [-2.0, -3.0]], [[-2.0], [-2.5, -1.0]], coefficient=2.0)
    assert float(torch.cat(rows).sum()) == pytest.approx(0)
    assert kl_penalized_advantages([], [], [], coefficient=1.0) == []
    assert kl_penalized_advantages([1.0], [[-1.0]], [[-2.0]], coefficient=1.0, weights=[[0]])[0].tolist() == [1.0]


def test_igpo_normalises_gains_and_outcomes_apart_and_discounts() -> None:
    # Gains of the group: [2, 0] and [1]: mean 1, deviation 1. Outcomes 1 and 0: ±sqrt(1/2).
    root = math.sqrt(0.5)
    rows = igpo([[2, 0], [1]], [1, 0], discount=0.5, epsilon=0.0)
    assert [row.tolist() for row in rows] == [
        pytest.approx([1 - 0.5 + 0.25 * root, -1 + 0.5 * root, root]),
        pytest.approx([0 - 0.5 * root, -root]),
    ]
    heavier = igpo([[2, 0], [1]], [1, 0], discount=0.0, epsilon=0.0, gain_weight=3.0, ddof=0)
    assert heavier[0].tolist() == pytest.approx([3 * math.sqrt(1.5), -3 * math.sqrt(1.5), 1])


def test_igpo_keeps_groups_apart_and_takes_answers_at_once() -> None:
    rows = igpo([[], [5.0], [7.0]], [1, 3, 2], torch.tensor([1, 1, 2]), discount=1.0, epsilon=0.0)
    root = math.sqrt(0.5)
    assert [row.tolist() for row in rows] == [pytest.approx([-root]), pytest.approx([root, root]), [0, 0]]
    assert igpo([], []) == []
    left_out = igpo([[NAN, 1.0], [2.0]], [1, 0], nonfinite="exclude", discount=0.0)
    assert left_out[0].tolist()[0] == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: discounted([1], 1.5), LossConfigError, "discount=1.5 must lie in"),
        (lambda: gae([1], [1], decay=-0.1), LossConfigError, "decay=-0.1 must lie in"),
        (lambda: gae([1], [1, 2]), LengthMismatchError, "gae: 2 values for 1 steps"),
        (lambda: igpo([[1]], [1, 2]), LengthMismatchError, "1 rows of gains but 2 outcomes"),
        (lambda: igpo([[1]], [1], [1, 2]), LengthMismatchError, "1 rewards but 2 group ids"),
        (lambda: igpo([[1], [2]], [1, NAN]), NonFiniteLossInput, "reward 1 of 2 is nan"),
        (
            lambda: kl_penalized_advantages([0.0], [[-1.0]], [[-1.0, -2.0]], coefficient=1.0),
            LengthMismatchError,
            "sample 0: 2 ref_logprobs for 1 steps",
        ),
        (
            lambda: kl_penalized_advantages([[0.0, 1.0]], [[-1.0]], [[-1.0]], coefficient=1.0),
            LengthMismatchError,
            "sample 0: 2 advantages for 1 steps",
        ),
        (
            lambda: kl_penalized_advantages([0.0], [[-1.0]], [[-1.0]], coefficient=1.0, weights=[[1, 1]]),
            LengthMismatchError,
            "sample 0: 2 weights for 1 steps",
        ),
        (
            lambda: kl_penalized_advantages([0.0, 0.0], [[-1.0], [-1.0, NAN]], [[-1.0], [-1.0, -1.0]], coefficient=1.0),
            NonFiniteLossInput,
            "sample 1: the KL at token 1 is nan",
        ),
    ],
)
def test_a_mistake_is_told(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
