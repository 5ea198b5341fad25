"""The groups of rollouts of a step: collecting them, resampling those with equal rewards, and making datums of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import compress
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ...datums.builders.trajectories import Trajectory, datums_from_trajectories
from ...datums.errors import EmptyLossError
from ...datums.types import Datum
from ...losses import advantages as advantage_functions
from ...losses import returns as advantages_of_steps
from ...losses.spec.spec import GROUP_KEY
from ..environments.protocol import Problem
from ..run.batches import Batches
from ..settings.choices import Overlong
from .episodes import Policy, Rollout, RolloutRunner, Sampler

Groups = list[list[Rollout]]

#: Advantages by name, from rewards, group ids and response lengths; see `lossbook.losses.advantages.from_rewards`.
ADVANTAGES: dict[str, Callable[[list[float], list[int], list[int]], Tensor]] = {
    "group": lambda rewards, groups, lengths: advantage_functions.group_advantages(rewards, groups),
    "centred": lambda rewards, groups, lengths: advantage_functions.centred(rewards, groups),
    "rloo": lambda rewards, groups, lengths: advantage_functions.rloo(rewards, groups),
    "batch_scaled": lambda rewards, groups, lengths: advantage_functions.batch_scaled(rewards, groups),
    "maxrl": lambda rewards, groups, lengths: advantage_functions.maxrl(rewards, groups),
    "gpg": lambda rewards, groups, lengths: advantage_functions.gpg(rewards, groups),
    "opo": lambda rewards, groups, lengths: advantage_functions.opo(rewards, lengths, groups),
    "pass_at_k": lambda rewards, groups, lengths: advantage_functions.pass_at_k(rewards, groups),
    "reinforce_plus_plus": lambda rewards, groups, lengths: advantage_functions.reinforce_plus_plus(
        rewards, None if len(set(groups)) == len(groups) else groups, lengths=lengths
    ),
}
#: Those of single turns, from their rewards, group ids and states.
TURN_ADVANTAGES: dict[str, Callable[[list[list[float]], list[int], list[list[str]]], list[Tensor]]] = {
    "gigpo": lambda rewards, groups, states: advantages_of_steps.gigpo(rewards, states, groups)
}


class CollectorSettings(Protocol):
    """The settings of a `RolloutCollector`."""

    @property
    def seed(self) -> int: ...
    @property
    def problems_per_step(self) -> int: ...
    @property
    def group_size(self) -> int: ...
    @property
    def dynamic_sampling(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def overlong(self) -> Overlong: ...
    @property
    def overlong_buffer(self) -> int | None: ...
    @property
    def off_policy_steps(self) -> int: ...


@dataclass(frozen=True)
class StepRollouts:
    """The groups of a step, and the metrics of collecting them (`reward`: before any group was replaced)."""

    groups: Groups
    metrics: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """As JSON values; floats keep every bit."""
        return {"groups": [[asdict(one) for one in group] for group in self.groups], "metrics": self.metrics}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> StepRollouts:
        """From the values of `to_json`."""
        return cls([[Rollout(**one) for one in group] for group in value["groups"]], value["metrics"])


class RolloutCollector:
    """Collects the rollouts of each step. With `off_policy_steps` 1, a thread samples the next step's during training.

    The rollouts of step s + 1 then come from the weights before step s's update, whenever they are sampled.
    """

    def __init__(
        self, config: CollectorSettings, runner: RolloutRunner, problems: Sequence[Problem], policy: Policy
    ) -> None:
        self.config = config
        self.runner = runner
        self.problems = problems
        self.policy = policy
        self.batches = Batches(len(problems), config.problems_per_step, config.seed)
        self._ahead: Future[StepRollouts] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollouts")

    def __enter__(self) -> RolloutCollector:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def get(self, step: int, *, is_last: bool) -> StepRollouts:
        """The rollouts of a step; off policy, sampling for the next step begins too, unless this is the last."""
        if self._ahead is None and not self.config.off_policy_steps:
            return self.collect(self.policy.save_weights_and_get_sampling_client(), step)
        ahead, self._ahead = self._ahead, None
        rollouts = None if ahead is None else ahead.result()  # before new weights go to where it samples
        sampler = self.policy.save_weights_and_get_sampling_client()
        rollouts = self.collect(sampler, step) if rollouts is None else rollouts
        if not is_last:
            self._ahead = self._thread.submit(self.collect, sampler, step + 1)
        return rollouts

    def keep(self) -> Any:
        """The rollouts sampled ahead, as JSON values for a checkpoint, once they are complete; None on policy."""
        return None if self._ahead is None else self._ahead.result().to_json()

    def restore(self, kept: Any) -> None:
        """Continue from what `keep` returned."""
        if kept is not None:
            self._ahead = Future()
            self._ahead.set_result(StepRollouts.from_json(kept))

    def collect(self, sampler: Sampler, step: int) -> StepRollouts:
        """Sample a step's groups, and up to `dynamic_sampling` times replace those of equal rewards by other problems'."""
        started = time.perf_counter()
        groups = self._run(sampler, self.batches.at(step), (step, 0))
        first = [rollout for group in groups for rollout in group]
        resampled = 0
        for attempt in range(1, self.config.dynamic_sampling + 1):
            level = [at for at, group in enumerate(groups) if self.has_equal_rewards(group)]
            if not level:
                break
            drawn = np.random.default_rng((self.config.seed, step, attempt)).integers(
                len(self.problems), size=len(level)
            )
            for at, group in zip(level, self._run(sampler, drawn.tolist(), (step, attempt)), strict=True):
                groups[at] = group
            resampled += len(level)
        metrics = {
            "reward": float(np.mean([rollout.reward for rollout in first])),
            "resampled_groups": float(resampled),
            "zero_advantage_groups": float(
                np.mean([self.has_equal_rewards(group) for group in self._compared(groups)])
            ),
            **_length_metrics(first),
        }
        return StepRollouts(groups, {**metrics, "sampling_seconds": time.perf_counter() - started})

    def shaped_rewards(self, group: Sequence[Rollout]) -> list[float]:
        """The rewards for the advantages: the environment's, less the penalty of overlong answers."""
        if self.config.overlong != "soft":
            return [rollout.reward for rollout in group]
        limit = self.config.max_tokens
        buffer = self.config.overlong_buffer or max(limit // 4, 1)
        return [rollout.reward + overlong_penalty(rollout.longest_answer, limit, buffer) for rollout in group]

    def _run(self, sampler: Sampler, indices: Sequence[int], key: tuple[int, int]) -> Groups:
        problems = [self.problems[i] for i in indices]
        return self.runner.run(sampler, problems, self.config.group_size, (self.config.seed, *key))

    def _compared(self, groups: Groups) -> Groups:
        """The rollouts that advantages compare: each group's, or, with one answer per problem, those of all problems."""
        return groups if self.config.group_size > 1 else [[rollout for group in groups for rollout in group]]

    def has_equal_rewards(self, group: Sequence[Rollout]) -> bool:
        """Whether a group's rewards are equal up to rounding, so that all advantages are 0."""
        rewards = self.shaped_rewards(group)
        return max(rewards) - min(rewards) <= advantage_functions.FLOOR * max(map(abs, rewards))


def overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """0 up to limit - buffer tokens, then linearly down to -1 at the limit. DAPO, arXiv:2503.14476 eq. 13."""
    return -min(max(length - (limit - buffer), 0) / buffer, 1.0)


def datums_of(collector: RolloutCollector, groups: Groups, advantages: str, *, allow_biased: bool) -> list[Datum]:
    """One datum per rollout, with its advantage and its group; with overlong="mask" truncated ones only count in the mean.

    Raises EmptyLossError when no datum is left.
    """
    rewards = [reward for group in groups for reward in collector.shaped_rewards(group)]
    ids = [at for at, group in enumerate(groups) for _ in group]
    rollouts = [rollout for group in groups for rollout in group]
    values = _advantages(advantages, rollouts, rewards, ids)
    is_masked = collector.config.overlong == "mask"
    kept = [not (is_masked and rollout.is_truncated) for rollout in rollouts]
    trajectories = [
        Trajectory(
            prompt_tokens=rollout.prompt_tokens,
            response_tokens=rollout.response_tokens,
            sampling_logprobs=rollout.sampling_logprobs,
            advantages=advantage,
            weights=rollout.weights,
            temperature=collector.runner.temperature,
        )
        for rollout, advantage in compress(zip(rollouts, values, strict=True), kept)
    ]
    if not trajectories:
        raise EmptyLossError(
            f"all {len(rollouts)} answers were truncated at {collector.runner.max_tokens} tokens, and overlong='mask' trains on "
            "none of them: raise --max-tokens, or choose --overlong keep or soft"
        )
    datums = datums_from_trajectories(trajectories, allow_biased=allow_biased)
    return [
        Datum(datum.model_input, {**datum.loss_fn_inputs, GROUP_KEY: group})
        for datum, group in zip(datums, compress(ids, kept), strict=True)
    ]


def _advantages(name: str, rollouts: Sequence[Rollout], rewards: list[float], ids: list[int]) -> list[Any]:
    """Of each rollout, or of each of its tokens. rewards: what each gets, which is its turns' but for a penalty at the end."""
    if name not in TURN_ADVANTAGES:
        return ADVANTAGES[name](rewards, ids, [rollout.sampled_tokens for rollout in rollouts]).tolist()
    of_turns = [
        [*one.turn_rewards[:-1], one.turn_rewards[-1] + reward - one.reward]
        for one, reward in zip(rollouts, rewards, strict=True)
    ]
    rows = TURN_ADVANTAGES[name](of_turns, ids, [one.states for one in rollouts])
    return [
        np.repeat(row.numpy(), np.diff([*one.turn_starts, len(one.weights)]))
        for one, row in zip(rollouts, rows, strict=True)
    ]


def _length_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    logprobs = np.concatenate([np.array(one.sampling_logprobs)[np.array(one.weights) > 0] for one in rollouts])
    return {
        "response_length": float(np.mean([one.sampled_tokens for one in rollouts])),
        "truncated_fraction": float(np.mean([one.is_truncated for one in rollouts])),
        "turns": float(np.mean([len(one.answers) for one in rollouts])),
        "sampler_entropy": float(-logprobs.mean()),
    }
