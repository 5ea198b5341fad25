"""Advantages over the steps of a sample: numbers by hand, and what they become in the limits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook.datums.errors import DtypeError, LengthMismatchError, LossConfigError, NonFiniteLossInput, ShapeError
from lossbook.losses.advantages import reinforce_plus_plus
from lossbook.losses.advantages.from_values import (
    adaptive_decay,
    discounted,
    gae,
    igpo,
    kl_penalized_advantages,
    reinforce_plus_plus_tokens,
)

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


@pytest.mark.parametrize(
    ("length", "alpha", "expected"),
    [
        pytest.param(200, 0.05, 0.9, id="1 - 1/(0.05 * 200)"),
        pytest.param(2000, 0.05, 0.99, id="ten times as long: a tenth of the distance to 1"),
        pytest.param(20, 0.05, 0.0, id="1 / alpha tokens: one step"),
        pytest.param(5, 0.05, 0.0, id="fewer: no less than one step"),
        pytest.param(4, 1.0, 0.75, id="another alpha"),
        pytest.param(1, 4.0, 0.75, id="a single token"),
    ],
)
def test_a_decay_adapts_to_the_length(length: int, alpha: float, expected: float) -> None:
    assert adaptive_decay(length, alpha=alpha) == pytest.approx(expected)
    if alpha == 0.05:
        assert adaptive_decay(length) == pytest.approx(expected)


def test_a_reward_is_spread_over_the_same_share_of_any_length() -> None:
    # Σ_k decay^k is alpha times the length in the limit, so a long response's reward reaches as far back as a short one's.
    for length in (100, 400, 1600):
        computed, _ = gae([0.0] * (length - 1) + [1.0], [0.0] * length, decay=adaptive_decay(length))
        assert float(computed.sum()) == pytest.approx(0.05 * length, rel=1e-6)


def test_an_adaptive_decay_needs_a_length_and_an_alpha_above_0() -> None:
    for length, alpha in ((0, 0.05), (-1, 0.05), (5, 0.0), (5, -1.0)):
        with pytest.raises(LossConfigError, match="must both be above 0"):
            adaptive_decay(length, alpha=alpha)
    with pytest.raises(LossConfigError, match="alpha=nan must be a finite number"):
        adaptive_decay(5, alpha=NAN)


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


def test_an_advantage_that_is_no_number_is_0_where_its_weight_is() -> None:
    (row,) = kl_penalized_advantages(
        [[NAN, 1.0, math.inf]], [[-1.0] * 3], [[-2.0] * 3], coefficient=0.5, weights=[[0, 1, 0]], is_centred=False
    )
    assert row.tolist() == [0, 0.5, 0]


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
        (lambda: gae([1, NAN], [1, 2]), NonFiniteLossInput, "gae: reward 1 of 2 is nan"),
        (lambda: gae([1, 2], [1, NAN]), NonFiniteLossInput, "value 1 of 2 is nan"),
        (lambda: gae([1, NAN, math.inf], [1, 2, 3]), NonFiniteLossInput, "gae: reward 1 of 3 is nan"),
        (lambda: discounted([0, 3, 2, 1], 0.5, mask=[0, 0, 0, 1]), LossConfigError, "reward 1 is 3.0, before the pol"),
        (
            lambda: kl_penalized_advantages([0.0], [[-1, NAN, NAN]], [[-1.0] * 3], coefficient=1.0),
            NonFiniteLossInput,
            "sample 0: the KL at token 1 is nan",
        ),
        (lambda: gae([1], [1], last_value=NAN), LossConfigError, "last_value=nan must be a finite number"),
        (lambda: gae([1], [1], discount=NAN), LossConfigError, "discount=nan must lie in"),
        (lambda: gae([[1, 2]], [[1, 2]]), ShapeError, r"gae: rewards must be one number per step, got shape \[1, 2\]"),
        (lambda: gae([1, 2], [1, 2], mask=[1]), LengthMismatchError, "gae: 1 mask entries for 2 steps"),
        (lambda: discounted([1, 2], 0.5, mask=[1, NAN]), NonFiniteLossInput, "mask 1 of 2 is nan"),
        (lambda: discounted([3, 2], 0.5, mask=[0, 1]), LossConfigError, "reward 0 is 3.0, before the policy's first"),
        (lambda: discounted(["a"], 0.5), DtypeError, "must be numbers"),
        (lambda: reinforce_plus_plus_tokens([[1]], [[1], [1]]), LengthMismatchError, "1 rows of rewards but 2 masks"),
        (lambda: reinforce_plus_plus_tokens([[1], [NAN]]), NonFiniteLossInput, "sample 1: reward 0 of 1 is nan"),
        (lambda: reinforce_plus_plus_tokens([[1]], discount=2), LossConfigError, "discount=2 must lie in"),
        (
            lambda: kl_penalized_advantages([0.0], [[-1.0]], [], coefficient=1.0),
            LengthMismatchError,
            "there are 1 rows of advantages but 0 of ref_logprobs",
        ),
        (
            lambda: kl_penalized_advantages([NAN], [[-1.0]], [[-1.0]], coefficient=1.0),
            NonFiniteLossInput,
            "sample 0: the advantage at token 0 is nan; its weight is not 0",
        ),
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


def test_nothing_is_discounted_over_tokens_that_the_environment_wrote() -> None:
    rewards, mask = [0, 0, 0, 0, 1], [1, 1, 0, 0, 1]
    assert discounted(rewards, 0.5, mask=mask).tolist() == [0.25, 0.5, 0, 0, 1]
    assert discounted(rewards, 0.5).tolist() == [0.0625, 0.125, 0.25, 0.5, 1]  # as if it had written them
    computed, returns = gae(rewards, [0, 0, NAN, NAN, 0], mask=mask, discount=0.5, decay=1.0)
    assert computed.tolist() == returns.tolist() == [0.25, 0.5, 0, 0, 1]
    # With values: δ = [0 + .5·2 - 1, 0 + .5·3 - 2, 1 - 3], each half of what follows added.
    computed, returns = gae(rewards, [1, 2, NAN, NAN, 3], mask=mask, discount=0.5, decay=1.0)
    assert computed.tolist() == [0 + 0.5 * (-0.5 + 0.5 * -2), -0.5 + 0.5 * -2, 0, 0, -2]
    assert returns.tolist() == [0.25, 0.5, 0, 0, 1]


def test_a_reward_at_a_tools_token_is_the_last_steps_before_it() -> None:
    assert discounted([0, 0, 4, 0, 0], 0.5, mask=[1, 1, 0, 0, 1]).tolist() == [2, 4, 0, 0, 0]


@given(data=st.data(), discount=st.floats(0, 1), decay=st.floats(0, 1))
@settings(max_examples=60)
def test_with_a_mask_a_sample_is_its_own_tokens_alone(data: st.DataObject, discount: float, decay: float) -> None:
    mask = data.draw(st.lists(st.booleans(), max_size=8))
    rewards = [data.draw(numbers) if own else 0.0 for own in mask]
    values = [data.draw(numbers) if own else NAN for own in mask]
    alone = [[one for one, own in zip(row, mask, strict=True) if own] for row in (rewards, values)]
    for given_mask in (mask, torch.tensor(mask), np.array(mask, dtype=float) * 0.5):
        for computed, right in zip(
            gae(rewards, values, mask=given_mask, discount=discount, decay=decay),
            gae(*alone, discount=discount, decay=decay),
            strict=True,
        ):
            assert [one for one, own in zip(computed.tolist(), mask, strict=True) if own] == right.tolist()
            assert all(one == 0 for one, own in zip(computed.tolist(), mask, strict=True) if not own)


def test_reinforce_plus_plus_of_tokens_by_hand() -> None:
    # Discounted by a half: [0.5, 1] and [-1, ., -2]; over these four tokens the mean is -0.375.
    computed = reinforce_plus_plus_tokens([[0, 1], [0, 0, -2]], [[1, 1], [1, 0, 1]], discount=0.5, epsilon=0.0)
    sums = np.array([0.5, 1.0, -1.0, -2.0])
    right = (sums - sums.mean()) / sums.std(ddof=1)
    assert computed[0].tolist() == pytest.approx(right[:2].tolist())
    assert computed[1].tolist() == pytest.approx([right[2], 0, right[3]])


@given(samples=st.lists(st.tuples(numbers, st.integers(1, 5)), min_size=1, max_size=6))
@settings(max_examples=40)
def test_the_whole_reward_at_the_last_token_gives_every_token_the_samples_own(samples: list) -> None:
    rows = [[0.0] * (length - 1) + [reward] for reward, length in samples]
    rewards, lengths = zip(*samples, strict=True)
    right = reinforce_plus_plus(rewards, lengths=lengths).tolist()
    for row, wanted, length in zip(reinforce_plus_plus_tokens(rows), right, lengths, strict=True):
        assert row.tolist() == pytest.approx([wanted] * length, abs=1e-9)


def test_reinforce_plus_plus_of_nothing_and_of_equal_tokens_is_nothing() -> None:
    assert reinforce_plus_plus_tokens([]) == []
    assert [row.tolist() for row in reinforce_plus_plus_tokens([[], [3.0]], [[], [1]])] == [[], [0]]
    assert [row.tolist() for row in reinforce_plus_plus_tokens([[0.0, 0.0]], [[0, 0]])] == [[0, 0]]


def test_a_kl_penalty_is_not_discounted_over_the_environments_tokens() -> None:
    (row,) = kl_penalized_advantages(
        [0.0],
        [[-1.0, NAN, -1.0]],
        [[-1.0, -2.0, -3.0]],
        coefficient=1.0,
        weights=[[1, 0, 1]],
        is_centred=False,
        discount=0.5,
    )
    assert row.tolist() == [-1, 0, -2]  # half of the last token's 2 nats, one step before it


def test_information_gains_are_divided_by_their_deviation_and_1e_6() -> None:
    # outcomes 1 and 0 have deviation root 1/2, and gains 3 and 1 root 2
    outcome, gain = 0.5 / (math.sqrt(0.5) + 1e-6), 1 / (math.sqrt(2) + 1e-6)
    rows = igpo([[3.0], [1.0]], [1, 0], discount=0.0)
    assert [row.tolist() for row in rows] == [
        pytest.approx(one, abs=1e-12) for one in ([gain, outcome], [-gain, -outcome])
    ]
