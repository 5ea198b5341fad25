"""A step's groups: advantages, groups that teach nothing, and answers that were too long."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest

from lossbook.cookbook.environments import Problem
from lossbook.cookbook.environments.protocol import SingleTurn
from lossbook.cookbook.rl import RLConfig
from lossbook.cookbook.rollouts.collector import ADVANTAGES, RolloutCollector, StepRollouts, datums_of, overlong_penalty
from lossbook.cookbook.rollouts.episodes import Rollout, RolloutRunner
from lossbook.datums.errors import EmptyLossError

PROBLEMS = [Problem(str(i), lambda: SingleTurn([], lambda answer: 0.0)) for i in range(6)]
NO_SAMPLER: Any = None  # `Dealt` needs none


def rollout(reward: float, length: int = 2, *, truncated: bool = False) -> Rollout:
    return Rollout("p", [1], [2] * length, [-0.5] * length, [1.0] * length, reward, truncated, length, ["x"])


class Dealt(RolloutRunner):
    """Gives out groups of the rewards it was dealt, one a problem, and notes what it was asked."""

    deals: list[list[float]]
    asked: list[tuple[list[str], tuple[int, ...]]]

    def run(self, sampler: Any, problems: Sequence[Problem], group_size: int, key: Sequence[int]) -> Any:
        self.asked.append(([problem.text for problem in problems], tuple(key)))
        return [[rollout(reward) for reward in self.deals.pop(0)] for _ in problems]


def collector(*deals: list[float], **changes: Any) -> RolloutCollector:
    runner = Dealt(None, 8)
    object.__setattr__(runner, "deals", list(deals))
    object.__setattr__(runner, "asked", [])
    config = RLConfig.model_validate(
        {"task": "gcd", "problems_per_step": 2, "group_size": 2, "max_tokens": 8, **changes}
    )
    return RolloutCollector(config, runner, PROBLEMS, None)  # type: ignore[arg-type]


def advantages(datums: list[Any]) -> list[float]:
    return [float(datum.loss_fn_inputs["advantages"].to_numpy()[-1]) for datum in datums]


@pytest.mark.parametrize("name", [name for name in ADVANTAGES if name != "pass_at_k"])
def test_better_answers_of_a_group_have_positive_advantages_and_worse_ones_negative(name: str) -> None:
    groups = [[rollout(1.0), rollout(0.0)], [rollout(0.0), rollout(0.5)], [rollout(1.0), rollout(1.0)]]
    best, worst, low, high, *level = advantages(datums_of(collector(), groups, name, allow_biased=False))
    assert best > 0 > worst
    assert high > 0 > low
    assert level == pytest.approx([0.0, 0.0], abs=1e-6)


def test_the_advantage_stands_on_every_token_of_the_answer_and_the_prompt_has_weight_0() -> None:
    [datum, _] = datums_of(collector(), [[rollout(1.0, 3), rollout(0.0)]], "centred", allow_biased=False)
    inputs = datum.loss_fn_inputs
    assert inputs["advantages"].data == [0.5, 0.5, 0.5]
    assert inputs["sampling_logprobs"].data == [-0.5, -0.5, -0.5]
    assert inputs["weights"].data == [1.0, 1.0, 1.0]  # the prompt's one token predicts the first


@pytest.mark.parametrize(("overlong", "expected"), [("keep", [0, 0, 1, 1]), ("mask", [0, 1, 1])])
def test_a_datum_says_which_problem_it_answers(overlong: str, expected: list[int]) -> None:
    groups = [[rollout(1.0), rollout(0.0, truncated=True)], [rollout(0.0), rollout(0.5)]]
    datums = datums_of(collector(overlong=overlong), groups, "centred", allow_biased=False)
    assert [datum.loss_fn_inputs["group"].to_numpy().item() for datum in datums] == expected
    assert advantages(datums)[0] == 0.5


def test_what_an_environment_wrote_between_two_answers_has_weight_0_in_the_datum() -> None:
    turns = Rollout("p", [1], [2, 3, 4, 5], [-0.5, 0.0, 0.0, -0.25], [1.0, 0.0, 0.0, 1.0], 1.0, False, 1, ["x", "y"])
    [datum, _] = datums_of(collector(), [[turns, rollout(0.0)]], "centred", allow_biased=False)
    inputs = datum.loss_fn_inputs
    assert inputs["target_tokens"].data == [2, 3, 4, 5]
    assert inputs["weights"].data == [1.0, 0.0, 0.0, 1.0]
    assert inputs["sampling_logprobs"].data == [-0.5, 0.0, 0.0, -0.25]


def played(rewards: list[float], states: list[str], *, truncated: bool = False) -> Rollout:
    """An episode of turns of one token each, with one of the environment's before each but the first."""
    tokens = 2 * len(rewards) - 1
    own = [float(i % 2 == 0) for i in range(tokens)]
    starts = list(range(0, tokens, 2))
    answers = ["x"] * len(rewards)
    total = sum(rewards)
    longest = 8 if truncated else 1
    return Rollout("p", [1], [2] * tokens, own, own, total, truncated, longest, answers, starts, rewards, states)


def test_gigpo_gives_each_turns_tokens_its_own_advantage() -> None:
    # Sums 1 and 0: ±.5. From "start": returns .95 and 0, so ±.475; from "open" nobody else.
    group = [played([0.0, 1.0], ["start", "open"]), played([0.0], ["start"])]
    first, second = datums_of(collector(), [group], "gigpo", allow_biased=False)
    assert first.loss_fn_inputs["advantages"].data == pytest.approx([0.975, 0.975, 0.5])
    assert first.loss_fn_inputs["weights"].data == [1.0, 0.0, 1.0]
    assert second.loss_fn_inputs["advantages"].data == pytest.approx([-0.975])


def test_the_penalty_of_an_overlong_episode_is_its_last_turns() -> None:
    group = [played([0.0, 1.0], ["start", "open"], truncated=True), played([0.5], ["start"])]
    soft = collector(overlong="soft", overlong_buffer=4, max_tokens=8)  # 8 tokens of 8: all of the penalty, -1
    assert soft.shaped_rewards(group) == [0.0, 0.5]
    first, _ = datums_of(soft, [group], "gigpo", allow_biased=False)
    # Sums 0 and .5, less their mean: -.25; returns from "start" 0 and .5: -.25
    assert first.loss_fn_inputs["advantages"].data == pytest.approx([-0.5, -0.5, -0.25])


def test_groups_of_equal_rewards_are_replaced_by_other_problems_up_to_the_limit() -> None:
    dealt = collector([1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0], dynamic_sampling=2)
    rollouts = dealt.collect(NO_SAMPLER, step=1)
    assert [[one.reward for one in group] for group in rollouts.groups] == [[1.0, 0.0], [0.0, 1.0]]
    assert (rollouts.metrics["resampled_groups"], rollouts.metrics["zero_advantage_groups"]) == (2, 0)
    assert rollouts.metrics["reward"] == 0.75  # of what was sampled first: what is kept of it says less of the policy
    (first, _), (second, _), (third, _) = dealt.runner.asked  # type: ignore[attr-defined]
    assert (len(first), len(second), len(third)) == (2, 1, 1)
    assert [key for _, key in dealt.runner.asked] == [(0, 1, 0), (0, 1, 1), (0, 1, 2)]  # type: ignore[attr-defined]


def test_beyond_the_limit_groups_of_equal_rewards_stay_and_are_counted() -> None:
    rollouts = collector([1.0, 1.0], [0.0, 1.0], [0.0, 0.0], dynamic_sampling=1).collect(NO_SAMPLER, step=1)
    assert (rollouts.metrics["resampled_groups"], rollouts.metrics["zero_advantage_groups"]) == (1, 0.5)


def test_without_dynamic_sampling_nothing_is_replaced() -> None:
    rollouts = collector([1.0, 1.0], [0.0, 0.0]).collect(NO_SAMPLER, step=1)
    assert (rollouts.metrics["resampled_groups"], rollouts.metrics["zero_advantage_groups"]) == (0, 1)


@pytest.mark.parametrize(
    ("length", "penalty"),
    [
        pytest.param(12, 0.0, id="at limit - buffer: none yet"),
        pytest.param(14, -0.5, id="half into the buffer: (12 - 14) / 4"),
        pytest.param(16, -1.0, id="at the limit: all of it"),
        pytest.param(99, -1.0, id="beyond: no more"),
    ],
)
def test_the_soft_penalty_is_that_of_dapo_eq_13(length: int, penalty: float) -> None:
    assert overlong_penalty(length, limit=16, buffer=4) == penalty


def test_truncated_answers_are_kept_masked_or_made_to_pay() -> None:
    groups = [[rollout(1.0), rollout(0.0), rollout(1.0, 8, truncated=True)]]
    keep, mask, soft = (
        datums_of(collector(overlong=how, **buffer), groups, "centred", allow_biased=False)
        for how, buffer in (("keep", {}), ("mask", {}), ("soft", {"overlong_buffer": 4}))
    )
    assert advantages(keep) == pytest.approx([1 / 3, -2 / 3, 1 / 3])
    assert advantages(mask) == pytest.approx([1 / 3, -2 / 3])  # its reward still counts in the group's mean
    assert advantages(soft) == pytest.approx([2 / 3, -1 / 3, -1 / 3])  # rewards 1, 0 and 1 - 1


def test_a_soft_penalty_makes_a_group_of_equal_rewards_unequal() -> None:
    group = [rollout(1.0), rollout(1.0, 8, truncated=True)]
    assert collector().has_equal_rewards(group)
    assert not collector(overlong="soft").has_equal_rewards(group)


def test_where_every_answer_was_truncated_and_masked_the_error_says_what_to_change() -> None:
    with pytest.raises(EmptyLossError, match=r"all 1 answers were truncated at 8 tokens.*raise --max-tokens"):
        datums_of(collector(overlong="mask"), [[rollout(1.0, truncated=True)]], "centred", allow_biased=False)


def test_what_is_kept_with_a_checkpoint_comes_back_bit_for_bit() -> None:
    rollouts = StepRollouts([[rollout(1 / 3), rollout(0.1)]], {"reward": 1 / 7})
    assert StepRollouts.from_json(json.loads(json.dumps(rollouts.to_json()))) == rollouts


def test_with_one_answer_per_problem_the_answers_of_a_step_are_compared() -> None:
    alone = collector(group_size=1, problems_per_step=4, advantages="reinforce_plus_plus")
    groups = [[rollout(1.0)], [rollout(0.0)], [rollout(0.0)], [rollout(1.0)]]
    # Whitened over the 8 tokens: ±0.5 over a deviation of sqrt(8 * 0.25 / 7).
    assert advantages(datums_of(alone, groups, "reinforce_plus_plus", allow_biased=False)) == pytest.approx(
        [x * math.sqrt(7 / 8) for x in (1, -1, -1, 1)]
    )
