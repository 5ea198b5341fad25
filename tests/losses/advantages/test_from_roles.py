"""Role-conditioned advantages: numbers by hand, one call or several, and what cannot be."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossbook.datums.errors import LengthMismatchError, LossConfigError, NonFiniteLossInput
from lossbook.losses.returns import role_advantages


def test_a_reward_is_compared_with_what_its_role_earned_before() -> None:
    # first: 0, then .5 * 0 + .5 * 1 = .5, then .25 + .5 = .75; second: 0, -.5
    advantages, baselines = role_advantages([1, -1, 1, -1], ["first", "second", "first", "second"], decay=0.5)
    assert advantages.tolist() == [1, -1, 0.5, -0.5]
    assert advantages.dtype == torch.float64
    assert baselines == {"first": 0.75, "second": -0.75}


def test_the_decay_is_095_and_given_baselines_are_continued() -> None:
    advantages, baselines = role_advantages([2.0], [("kuhn", 0)], {("kuhn", 0): 1.0, ("kuhn", 1): -1.0})
    assert advantages.tolist() == [1.0]
    assert baselines == {("kuhn", 0): pytest.approx(1.05), ("kuhn", 1): -1.0}


def test_the_baselines_that_are_given_stay_as_they_are() -> None:
    given_ones = {"a": 1.0}
    role_advantages([5.0], ["a"], given_ones)
    assert given_ones == {"a": 1.0}


@given(
    st.lists(st.tuples(st.integers(-5, 5), st.sampled_from("ab")), max_size=10),
    st.integers(0, 10),
    st.floats(0, 1),
)
def test_two_calls_are_one(games: list[tuple[int, str]], cut: int, decay: float) -> None:
    rewards, roles = [float(r) for r, _ in games], [role for _, role in games]
    whole, after = role_advantages(rewards, roles, decay=decay)
    first, between = role_advantages(rewards[:cut], roles[:cut], decay=decay)
    second, end = role_advantages(rewards[cut:], roles[cut:], between, decay=decay)
    assert torch.cat([first, second]).tolist() == whole.tolist()
    assert end == after


@given(st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=8), st.floats(0, 1))
def test_a_role_that_always_earns_its_baseline_gets_nothing(rewards: list[float], decay: float) -> None:
    advantages, _ = role_advantages(rewards, ["a"] * len(rewards), {"a": rewards[0]}, decay=decay)
    assert advantages[0] == 0
    same, baselines = role_advantages([2.0] * 3, [0] * 3, {0: 2.0}, decay=0.5)
    assert (same.tolist(), baselines) == ([0, 0, 0], {0: 2.0})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: role_advantages([1.0], ["a", "b"]), LengthMismatchError, "1 rewards but 2 group ids"),
        (lambda: role_advantages([1.0, math.nan], ["a", "b"]), NonFiniteLossInput, "reward 1 of 2 is nan"),
        (lambda: role_advantages([1e200], ["a"]), NonFiniteLossInput, "beyond"),
        (lambda: role_advantages([1.0], ["a"], decay=1.5), LossConfigError, "decay=1.5 must lie in"),
        (lambda: role_advantages([1.0], ["a"], {"a": math.inf}), LossConfigError, "the baseline of 'a'=inf"),
    ],
)
def test_what_cannot_be_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_of_nothing_nothing_changes() -> None:
    advantages, baselines = role_advantages([], [], {"a": 1.0})
    assert (advantages.tolist(), baselines) == ([], {"a": 1.0})
