"""Advantages from rewards: numbers by hand, the laws, and what degenerate groups give."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook.datums.errors import (
    DtypeError,
    LengthMismatchError,
    LossCheckError,
    LossConfigError,
    NonFiniteLossInput,
    ShapeError,
)
from lossbook.losses import advantages
from lossbook.losses.advantages.from_rewards import (
    batch_scaled,
    centred,
    gdpo,
    gpg,
    group_advantages,
    maxrl,
    opo,
    pass_at_k,
    reinforce_plus_plus,
    remax,
    rloo,
)
from lossbook.losses.testing import check_advantages

NAN = float("nan")


@pytest.mark.parametrize(
    ("function", "rewards", "expected"),
    [
        # Deviation of [1, 0, 0, 1]: sqrt(1/3) with n - 1, 1/2 with n.
        pytest.param(group_advantages, [1, 0, 0, 1], [0.866024, -0.866024, -0.866024, 0.866024], id="epsilon 1e-6"),
        pytest.param(
            partial(group_advantages, epsilon=1e-4),
            [1, 0, 0, 1],
            [0.865875, -0.865875, -0.865875, 0.865875],
            id="epsilon 1e-4, as in TRL",
        ),
        pytest.param(partial(group_advantages, ddof=0, epsilon=0.0), [1, 0, 0, 1], [1, -1, -1, 1], id="squares over n"),
        pytest.param(centred, [1, 0, 0, 1], [0.5, -0.5, -0.5, 0.5], id="centred"),
        pytest.param(rloo, [1, 0, 0, 1], [2 / 3, -2 / 3, -2 / 3, 2 / 3], id="less the mean of the others"),
        pytest.param(rloo, [3, 1], [2, -2], id="of two: less the other"),
        pytest.param(partial(maxrl, epsilon=0.0), [1, 0, 0, 3], [0, -1, -1, 2], id="over the mean"),
        pytest.param(partial(maxrl, epsilon=1.0), [1, 0, 0, 3], [0, -0.5, -0.5, 1], id="over the mean and epsilon"),
        pytest.param(maxrl, [1, 0], [0.5 / 0.500001, -0.5 / 0.500001], id="over the mean and 1e-6"),
        # Two of six samples have no signal: alpha is 6/4, and of the six rewards five are not 0.
        pytest.param(
            partial(gpg, groups=[0, 0, 1, 1, 2, 2]),
            [1, 0, 2, 2, 3, 1],
            [0.75, -0.75, 0, 0, 1.5, -1.5],
            id="times 6/4, the samples over those whose group differs",
        ),
        pytest.param(
            partial(gpg, groups=[0, 0, 1, 1, 2, 2], counted="nonzero"),
            [1, 0, 2, 2, 3, 1],
            [0.6, -0.6, 0, 0, 1.2, -1.2],
            id="times 6/5, the samples over those whose reward is not 0",
        ),
        pytest.param(
            partial(gpg, groups=[0, 0, 1], scale="group"),
            [3, 1, 1],
            [1.5 / (math.sqrt(2) + 1e-6), -1.5 / (math.sqrt(2) + 1e-6), 0],
            id="times 3/2, over the deviation",
        ),
        pytest.param(partial(gpg, counted="nonzero"), [1, 0], [1, -1], id="times 2/1, where one reward is not 0"),
        pytest.param(gpg, [0, 0], [0, 0], id="no signal at all"),
        pytest.param(
            partial(opo, lengths=[1, 1, 2]), [1, 0, 2], [-0.25, -1.25, 0.75], id="less the mean by length: 5/4"
        ),
        pytest.param(partial(remax, greedy_rewards=[1, 1, 0]), [1, 0, 2], [0, -1, 2], id="less the greedy reward"),
        pytest.param(pass_at_k, [1, 5, 3], [0, 2, 0], id="the best alone, by its lead over the second"),
        pytest.param(pass_at_k, [5, 1, 5], [0, 0, 0], id="two best: no lead"),
        pytest.param(pass_at_k, [2], [0], id="one alone: no lead"),
        pytest.param(
            partial(reinforce_plus_plus, epsilon=0.0),
            [1, 0, 0, 1],
            [math.sqrt(3) / 2, -math.sqrt(3) / 2, -math.sqrt(3) / 2, math.sqrt(3) / 2],
            id="whitened over the batch",
        ),
        # 2 tokens of 1 and 2 of 0 spread over 2 samples of 1 token and one of 2: mean 1/2, squares 4/4 over 3.
        pytest.param(
            partial(reinforce_plus_plus, lengths=[1, 1, 2], epsilon=0.0),
            [1, 1, 0],
            [math.sqrt(3) / 2, math.sqrt(3) / 2, -math.sqrt(3) / 2],
            id="whitened over tokens",
        ),
        pytest.param(
            partial(reinforce_plus_plus, groups=[0, 0, 1, 1], epsilon=0.0),
            [1, 0, 10, 10],
            [math.sqrt(1.5), -math.sqrt(1.5), 0, 0],
            id="with a baseline: group means off, then whitened",
        ),
        pytest.param(
            partial(reinforce_plus_plus, epsilon=1.0),
            [1, 0, 0, 0],
            [0.5, -1 / 6, -1 / 6, -1 / 6],
            id="deviation 1/2 + 1",
        ),
        # One function: ±1/2 of deviation sqrt(1/2), whitened twice with 1 added to the deviation each time.
        pytest.param(
            partial(gdpo, epsilon=1.0),
            [[1], [0]],
            [
                0.5 / (1 + math.sqrt(0.5)) / (1 + math.sqrt(0.5) / (1 + math.sqrt(0.5))),
                -0.5 / (1 + math.sqrt(0.5)) / (1 + math.sqrt(0.5) / (1 + math.sqrt(0.5))),
            ],
            id="weight 1 unless given",
        ),
        # Function 1: ±sqrt(1/2) twice, function 2 twice as heavy and against it: the sum is ±sqrt(1/2), whitened the same.
        pytest.param(
            partial(gdpo, weights=[1.0, 2.0], epsilon=0.0),
            [[1, 0], [0, 100]],
            [-math.sqrt(0.5), math.sqrt(0.5)],
            id="each function normalised, weighed, added, whitened",
        ),
    ],
)
def test_advantages_are_their_formula(function: Callable[..., Any], rewards: list, expected: list[float]) -> None:
    advantages = function(rewards)
    assert advantages.dtype == torch.float64
    assert advantages.tolist() == pytest.approx(expected, abs=1e-6)


def exactly(values: list[float], lengths: list[int]) -> list[float]:
    """Rewards whitened over tokens, in rational numbers up to the last square root."""
    own, counts = [Fraction(one) for one in values], [Fraction(one) for one in lengths]
    mean = sum(c * v for c, v in zip(counts, own, strict=True)) / sum(counts)
    square = sum(c * (v - mean) ** 2 for c, v in zip(counts, own, strict=True)) / (sum(counts) - 1)
    return [float(v - mean) / math.sqrt(square) for v in own]


@pytest.mark.parametrize("lengths", [[1, 1, 1, 1, 1], [3, 1, 4, 1, 5]])
@pytest.mark.parametrize("offset", [0.0, 1e5, -3e5])
def test_the_size_of_rewards_costs_no_digits(offset: float, lengths: list[int]) -> None:
    rewards = [offset + one for one in (0.7, 0.1, 0.9, 0.4, 0.2)]
    right = exactly(rewards, lengths)
    assert reinforce_plus_plus(rewards, lengths=lengths, epsilon=0.0).tolist() == pytest.approx(right, rel=1e-13)
    if len(set(lengths)) == 1:
        assert group_advantages(rewards, epsilon=0.0).tolist() == pytest.approx(right, rel=1e-13)


def test_of_tokens_that_count_less_than_two_squares_are_divided_by_one() -> None:
    assert reinforce_plus_plus([1, 0], lengths=[0.5, 0.5], epsilon=0.0).tolist() == [
        1,
        -1,
    ]  # 2 x .5 x (1/2)^2 = (1/2)^2


def test_groups_are_apart_and_any_ids_will_do() -> None:
    rewards = [1.0, 10.0, 0.0, 30.0, 7.0]
    expected = [0.5, -10.0, -0.5, 10.0, 0.0]
    for groups in (
        ["a", "b", "a", "b", "c"],
        np.array([3, 1, 3, 1, 0]),
        torch.tensor([3, 1, 3, 1, 0]),
        (0, None, 0, None, 9),
    ):
        assert centred(rewards, groups).tolist() == expected
    for given_rewards in (np.array(rewards, dtype=np.float32), torch.tensor(rewards, requires_grad=True)):
        assert centred(given_rewards, ["a", "b", "a", "b", "c"]).tolist() == expected
    assert centred([], []).tolist() == []


def test_scaled_by_the_batch_every_group_has_one_divisor() -> None:
    # All rewards [0, 2, 0, 0]: mean 1/2, deviation 1.
    assert batch_scaled([0, 2, 0, 0], [0, 0, 1, 1], epsilon=1.0).tolist() == [-0.5, 0.5, 0, 0]


@pytest.mark.parametrize(
    ("function", "options"),
    [
        pytest.param(group_advantages, {}, id="group_advantages"),
        pytest.param(partial(group_advantages, epsilon=0.0, ddof=0), {}, id="without epsilon, squares over n"),
        pytest.param(partial(group_advantages, epsilon=1e-4, center="leave-one-out"), {}, id="leave-one-out, scaled"),
        pytest.param(partial(group_advantages, nonfinite="exclude"), {}, id="NaN left out"),
        pytest.param(centred, {"scaling": "equivariant"}, id="centred"),
        pytest.param(partial(centred, nonfinite="exclude"), {"scaling": "equivariant"}, id="centred, NaN left out"),
        pytest.param(rloo, {"scaling": "equivariant"}, id="rloo"),
        pytest.param(batch_scaled, {"groups_are_apart": False}, id="batch_scaled"),
        pytest.param(
            partial(batch_scaled, nonfinite="exclude"), {"groups_are_apart": False}, id="batch_scaled, NaN out"
        ),
        pytest.param(
            lambda r, g: gdpo([[x, -2 * x] for x in r], g, weights=[1, 3]), {"groups_are_apart": False}, id="gdpo"
        ),
        pytest.param(reinforce_plus_plus, {"groups_are_apart": False}, id="reinforce++ with a baseline"),
        pytest.param(
            partial(reinforce_plus_plus, nonfinite="exclude"), {"groups_are_apart": False}, id="reinforce++, NaN out"
        ),
        pytest.param(
            lambda r, g: reinforce_plus_plus(r),
            {
                "groups_are_apart": False,
                "expected_failed_checks": {"a_group_of_one_gives_zero": "it knows no groups"},
            },
            id="reinforce++ without groups",
        ),
        pytest.param(
            maxrl,
            {
                "expected_failed_checks": {
                    "shift_invariance": "it divides by the mean",
                    "equal_rewards_give_zero": "it refuses rewards below 0",
                    "noise_is_not_amplified": "it refuses rewards below 0",
                }
            },
            id="maxrl",
        ),
        pytest.param(
            lambda r, g: opo(r, [2.0] * len(r), g), {"scaling": "equivariant"}, id="opo of responses of one length"
        ),
        pytest.param(gpg, {"scaling": "equivariant", "groups_are_apart": False}, id="gpg"),
        pytest.param(
            lambda r, g: pass_at_k(r, g),
            {"scaling": "equivariant", "expected_failed_checks": {"sum_is_zero": "only the best gets any"}},
            id="pass_at_k",
        ),
    ],
)
def test_advantages_keep_their_laws(function: Any, options: dict[str, Any]) -> None:
    check_advantages(function, **options, max_examples=8)


def no_floor(rewards: list[float], groups: list[int]) -> torch.Tensor:
    return group_advantages(rewards, groups, floor=0.0, epsilon=1e-12)


def over_the_batch(rewards: list[float], groups: list[int]) -> torch.Tensor:
    values = torch.tensor(rewards)
    return values - values.mean()


def raw(rewards: list[float], groups: list[int]) -> torch.Tensor:
    return torch.tensor(rewards)


def naive(rewards: list[float], groups: list[int]) -> torch.Tensor:
    values, ids = torch.tensor(rewards), torch.tensor(groups)
    whitened = torch.zeros_like(values)
    for group in ids.unique():
        own = values[ids == group]
        whitened[ids == group] = (own - own.mean()) / (own.std() + 1e-8)
    return whitened


def by_place(rewards: list[float], groups: list[int]) -> torch.Tensor:
    return centred(rewards, groups) * torch.arange(1, len(rewards) + 1)


@pytest.mark.filterwarnings("ignore:std..:UserWarning")
@pytest.mark.parametrize(
    ("function", "scaling", "law"),
    [
        pytest.param(no_floor, "invariant", "noise_is_not_amplified", id="rounding divided by itself"),
        pytest.param(over_the_batch, "equivariant", "groups_are_apart", id="one group's rewards move another's"),
        pytest.param(over_the_batch, "equivariant", "a_group_of_one_gives_zero", id="a baseline from elsewhere"),
        pytest.param(raw, "equivariant", "shift_invariance", id="no baseline: a shift shifts"),
        pytest.param(raw, "equivariant", "sum_is_zero", id="no baseline: not centred"),
        pytest.param(raw, "equivariant", "equal_rewards_give_zero", id="no baseline: equal rewards push"),
        pytest.param(centred, "invariant", "scale_invariance", id="not scaled, but claimed"),
        pytest.param(group_advantages, "equivariant", "scale_equivariance", id="scaled, but claimed not to be"),
        pytest.param(naive, "invariant", "a_group_of_one_gives_zero", id="the deviation of one is NaN"),
        pytest.param(naive, "invariant", "nan_stays_alone", id="one NaN poisons its group"),
        pytest.param(by_place, "equivariant", "permutation", id="the place in the batch matters"),
        pytest.param(lambda r, g: torch.zeros(len(r), 1), "invariant", "one_a_reward", id="a column too many"),
        pytest.param(
            lambda r, g: torch.full((len(r),), math.inf),
            "invariant",
            "one_a_reward",
            id="advantages that are not finite",
        ),
    ],
)
def test_a_broken_estimator_fails_by_the_name_of_the_law(function: Any, scaling: Any, law: str) -> None:
    report = check_advantages(function, scaling=scaling, on_fail="report", max_examples=8)
    assert law in {result.check for result in report.failures}


def test_a_broken_estimator_raises_with_its_report() -> None:
    with pytest.raises(LossCheckError, match="sum_is_zero") as caught:
        check_advantages(raw, max_examples=2)
    assert caught.value.report == check_advantages(raw, max_examples=2, on_fail="report")


def test_an_unknown_law_cannot_be_excused() -> None:
    with pytest.raises(LossCheckError, match=r"there is no law 'sum_is_zer'. Did you mean 'sum_is_zero'?"):
        check_advantages(centred, scaling="equivariant", expected_failed_checks={"sum_is_zer": "why"})


def test_rewards_that_differ_by_more_than_the_floor_count() -> None:
    assert group_advantages([1.0, 1.0 + 1e-5]).tolist() != [0, 0]
    assert group_advantages([1.0, 1.0 - 0.9e-6]).tolist() == [0, 0]
    assert group_advantages([1.0, 1.0 + 1e-5], floor=1e-3).tolist() == [0, 0]
    assert centred([1e-9, 0.0]).tolist() == [5e-10, -5e-10]  # small rewards are no rounding


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_named_or_left_out(bad: float) -> None:
    with pytest.raises(NonFiniteLossInput, match=r"^reward 2 of 4 is "):
        group_advantages([1, 0, bad, 3])
    assert centred([1, 0, bad, 3], [0, 0, 0, 1], nonfinite="exclude").tolist() == [0.5, -0.5, 0, 0]
    assert batch_scaled([0, 2, bad, 1], [0, 0, 0, 1], nonfinite="exclude", epsilon=0.0).tolist() == [-1, 1, 0, 0]
    assert opo([1, 0, bad], [1, 1, 9], nonfinite="exclude").tolist() == [0.5, -0.5, 0]
    assert pass_at_k([1, bad, 3], nonfinite="exclude").tolist() == [0, 0, 2]
    assert reinforce_plus_plus([1, bad, 0], nonfinite="exclude", epsilon=0.0).tolist() == pytest.approx(
        [math.sqrt(0.5), 0, -math.sqrt(0.5)]
    )


def test_a_function_that_scored_nothing_leaves_the_others_alone() -> None:
    advantages = gdpo([[1, NAN], [0, 5], [NAN, 5], [NAN, NAN]], nonfinite="exclude", epsilon=0.0)
    # Function 1: [a, -a, ., .], a = sqrt(1/2); function 2: level, so 0. Sample 3 is scored 0, sample 4 by nobody.
    assert advantages.tolist() == pytest.approx([1, -1, 0, 0])
    with pytest.raises(NonFiniteLossInput, match="reward 0 of 2"):
        gdpo([[1, NAN], [0, 5]])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: centred([1, 2], [0]), LengthMismatchError, "there are 2 rewards but 1 group ids"),
        (lambda: centred([[1, 2]]), ShapeError, r"one number per sample, got shape \[1, 2\]"),
        (lambda: gdpo([1, 2]), ShapeError, r"one column per reward function, got shape \[2\]"),
        (lambda: gdpo([[1, 2]], weights=[1]), LengthMismatchError, "2 reward functions but 1 weights"),
        (
            lambda: group_advantages([1], scale="std"),
            LossConfigError,
            "scale='std' is none of 'none', 'group', 'batch'",
        ),
        (lambda: group_advantages([1], center="none"), LossConfigError, "center='none' is none of"),
        (lambda: group_advantages([1], nonfinite="skip"), LossConfigError, "nonfinite='skip' is none of"),
        (lambda: group_advantages([1], ddof=2), LossConfigError, "ddof=2"),
        (lambda: group_advantages([1], epsilon=-1e-9), LossConfigError, "epsilon=-1e-09"),
        (lambda: group_advantages([1], floor=math.inf), LossConfigError, "floor=inf"),
        (lambda: maxrl([0, 1, -1]), LossConfigError, "reward 2 is -1.0"),
        (lambda: maxrl([0, -2, -1]), LossConfigError, "reward 1 is -2.0"),
        (lambda: maxrl([0, 1], epsilon=NAN), LossConfigError, "epsilon=nan"),
        (lambda: opo([0, 1], [1]), LengthMismatchError, "2 rewards but 1 lengths"),
        (lambda: opo([0, 1], [1, 0]), LossConfigError, "length 1 is 0"),
        (lambda: opo([0, 1], [1, NAN]), LossConfigError, "length 1 is nan"),
        (lambda: remax([0, 1], [1]), LengthMismatchError, "2 rewards but 1 greedy_rewards"),
        (lambda: remax([0, 1], [1, NAN]), NonFiniteLossInput, "reward 1 of 2 is nan"),
        (lambda: remax([0, 1, 2], [1, NAN, NAN]), NonFiniteLossInput, "reward 1 of 3 is nan"),
        (lambda: reinforce_plus_plus([2, 0, 1], lengths=[1, 0, 0]), LossConfigError, "above 0, but length 1 is 0"),
        (lambda: remax([0, 1e200, 1e200], [0, 0, 0]), NonFiniteLossInput, "reward 1 of 3 is 1e\\+200"),
        (lambda: reinforce_plus_plus([0, 1], lengths=[1]), LengthMismatchError, "2 rewards but 1 lengths"),
        (lambda: reinforce_plus_plus([2, 0], lengths=[1, 0]), LossConfigError, "above 0, but length 1 is 0"),
        (lambda: reinforce_plus_plus([2, 0], lengths=[-1, 2]), LossConfigError, "above 0, but length 0 is -1"),
        (lambda: reinforce_plus_plus([2, 0], lengths=[1, NAN]), LossConfigError, "above 0, but length 1 is nan"),
        (lambda: reinforce_plus_plus([2, 0], epsilon=NAN), LossConfigError, "epsilon=nan"),
        (
            lambda: centred([1, 2], [[0], [0]]),
            DtypeError,
            r"group id 0 of 2 is \[0\], a list; an id is a number, a string",
        ),
        (lambda: centred([1, 2], np.zeros((2, 1))), DtypeError, r"group id 0 of 2 is \[0\.0\], a list"),
        (lambda: centred([1, 2], [0, NAN]), DtypeError, "group id 1 of 2 is nan, which equals nothing"),
        (
            lambda: centred([1, "good"]),
            DtypeError,
            r"rewards must be numbers, one number per sample, not \[1, 'good'\]",
        ),
        (lambda: centred([[1], [1, 2]]), ShapeError, "rewards must be numbers, one number per sample"),
        (lambda: centred([1, 1e200]), NonFiniteLossInput, "reward 1 of 2 is 1e\\+200: beyond ±1e\\+150"),
        (lambda: gdpo([[], []]), ShapeError, "2 samples have no reward function"),
        (lambda: gdpo([[1], [2]], weights=[NAN]), LossConfigError, "weights=nan must be a finite number"),
    ],
)
def test_a_mistake_is_told(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def numpy_version(rewards: list[float], groups: list[int], scale: str, ddof: int, epsilon: float) -> np.ndarray:
    """As papers write it: per group, minus np.mean, over np.std."""
    values, ids = np.array(rewards, dtype=float), np.array(groups)
    advantages = np.zeros(len(values))
    for group in set(groups):
        own = values[ids == group]
        if len(own) > 1 and np.ptp(own) > 0:
            divisor = {
                "none": 1.0,
                "group": np.std(own, ddof=ddof) + epsilon,
                "batch": np.std(values, ddof=ddof) + epsilon,
            }
            advantages[ids == group] = (own - own.mean()) / divisor[scale]
    return advantages


@given(
    samples=st.lists(st.tuples(st.integers(-20, 20).map(lambda n: n / 8), st.integers(0, 3)), min_size=1, max_size=12),
    scale=st.sampled_from(["none", "group", "batch"]),
    ddof=st.integers(0, 1),
    epsilon=st.sampled_from([0.0, 1e-6, 0.5]),
)
@settings(max_examples=60)
def test_advantages_are_what_numpy_makes_of_them(samples: list, scale: Any, ddof: int, epsilon: float) -> None:
    rewards, groups = [r for r, _ in samples], [g for _, g in samples]
    advantages = group_advantages(rewards, groups, scale=scale, ddof=ddof, epsilon=epsilon)
    np.testing.assert_allclose(
        advantages.numpy(), numpy_version(rewards, groups, scale, ddof, epsilon), rtol=1e-9, atol=1e-12
    )


def test_equal_ids_are_one_group_whatever_holds_them() -> None:
    right = centred([1, 0, 4, 2], [0, 0, 1, 1]).tolist()
    for ids in (
        [torch.tensor(0), torch.tensor(0), torch.tensor(1), torch.tensor(1)],
        [np.int64(0), 0, 1.0, np.float64(1)],
        np.array(["a", "a", "b", "b"]),
        torch.tensor([False, False, True, True]),
        [("a", 1), ("a", 1), ("a", 2), ("a", 2)],
    ):
        assert centred([1, 0, 4, 2], ids).tolist() == right


#: Every function of rewards and groups; lengths and greedy rewards are of equal responses.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "group_advantages": group_advantages,
    "leave one out, by the batch": partial(group_advantages, center="leave-one-out", scale="batch", ddof=0),
    "without epsilon": partial(group_advantages, epsilon=0.0, floor=0.0),
    "centred": centred,
    "rloo": rloo,
    "batch_scaled": batch_scaled,
    "gdpo": lambda rewards, groups, **options: gdpo([[one] for one in rewards], groups, **options),
    "gpg": gpg,
    "gpg, as verl counts": partial(gpg, scale="group", counted="nonzero"),
    "maxrl": maxrl,
    "opo": lambda rewards, groups, **options: opo(rewards, [3] * len(rewards), groups, **options),
    "remax": lambda rewards, groups, **options: remax(rewards, [0.0] * len(rewards)),
    "pass_at_k": pass_at_k,
    "reinforce_plus_plus": lambda rewards, groups, **options: reinforce_plus_plus(
        rewards, groups, lengths=[3] * len(rewards), **options
    ),
}


def test_every_function_of_rewards_is_among_these() -> None:
    functions = {name for name in advantages.__all__ if inspect.isfunction(getattr(advantages, name))}
    assert functions <= set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
@given(
    rewards=st.lists(st.sampled_from([0.0, 1.0, 0.5, 1e-200, 1e-320, 1e149, 3.0, NAN, math.inf]), max_size=7),
    data=st.data(),
)
@settings(max_examples=60)
def test_degenerate_groups_give_finite_advantages_or_an_error_that_says_where(
    name: str, rewards: list[float], data: st.DataObject
) -> None:
    groups = data.draw(st.lists(st.integers(0, 3), min_size=len(rewards), max_size=len(rewards)))
    odd = [i for i, one in enumerate(rewards) if not math.isfinite(one)]
    if odd:
        with pytest.raises(NonFiniteLossInput, match=f"^reward {odd[0]} of {len(rewards)} is (nan|inf)"):
            FUNCTIONS[name](rewards, groups)
        if name == "remax":
            return
    computed = FUNCTIONS[name](rewards, groups, **({"nonfinite": "exclude"} if odd else {}))
    assert computed.shape == (len(rewards),)
    assert computed.isfinite().all()
    assert all(computed[i] == 0 for i in odd)
    if name != "remax" and len({rewards[i] for i in range(len(rewards)) if i not in odd}) < 2:
        assert computed.tolist() == [0] * len(rewards)  # nothing to compare
