"""Advantages of single steps, compared with the same step of the group's other samples: GiGPO and the optimal token baseline.

As in `from_rewards`, arguments are lists, arrays or tensors, results are float64 tensors on the CPU, and what has no signal
gets exactly 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import LengthMismatchError, LossConfigError
from .arguments import Groups, Rewards, check_number, check_share, finite, group_ids, numbers, one_of
from .from_rewards import FLOOR, group_advantages
from .from_values import discounted

PER_TOKEN = "one number per token"
#: By how much Σ p² may be below the square of one of its probabilities: both are float32 numbers of a model.
ROUNDING = 1e-4


def gigpo(
    rewards: Sequence[Rewards],
    states: Sequence[Sequence[Hashable]],
    groups: Groups | None = None,
    *,
    discount: float = 0.95,
    step_weight: float = 1.0,
    scale: Literal["none", "group"] = "none",
    counted: Literal["episodes", "steps"] = "episodes",
    ddof: int = 1,
    epsilon: float = 1e-6,
) -> list[Tensor]:
    """One advantage per step: the episode's among its group's, plus the step's among all steps taken from the same state.

    rewards    N rows of [steps_i]  unitless, one per step
    states     N rows of [steps_i]  what identifies the state in which each step was taken, such as the observation; any id
    groups     [N] ids of the tasks: only states of one task are compared; None: one task
    returns    N rows of [steps_i]

    A = A_episode + step_weight A_step. A_episode is the sum of an episode's rewards less the mean sum of its group; A_step is
    the discounted sum of this and all later rewards, less the mean of those of the group's steps from an equal state, in this
    episode too. A state that no other step was taken from gives 0.
    scale: "group" divides both by the deviation among what they are compared with, plus epsilon; ddof as in
    `group_advantages`. counted: the episode's mean and deviation are over the group's `episodes`, or over their `steps`, so
    that long episodes count more, as verl-agent has it. Give every token of a step the step's advantage, and train with `ppo`.

    Feng et al. 2025, arXiv:2505.10978 eq. 3 to 8. verl-agent: scale "none", step weight 1, discount 0.95; a task of one
    episode keeps its raw sum there and gets 0 here. Raises LengthMismatchError, NonFiniteLossInput and LossConfigError.
    """
    check_share("discount", discount)
    check_number("step_weight", step_weight)
    one_of("counted", counted, ("episodes", "steps"))
    rows = [
        finite(numbers(row, f"row {i}", "one reward per step"), f"row {i}: reward") for i, row in enumerate(rewards)
    ]
    tasks = group_ids(groups, len(rows))
    _check_rows("gigpo", rows, states)
    lengths = [len(row) for row in rows]
    owners = [task for task, length in zip(tasks, lengths, strict=True) for _ in range(length)]
    places = list(zip(owners, group_ids([one for own in states for one in own], len(owners)), strict=True))
    options: dict[str, Any] = {"scale": scale, "ddof": ddof, "epsilon": epsilon}
    sums = np.array([row.sum() for row in rows])
    if counted == "steps":
        episode = group_advantages(np.repeat(sums, lengths), owners, **options)
    else:
        episode = group_advantages(sums, tasks, **options).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
    returns = [discounted(row, discount) for row in rows]
    step = group_advantages(torch.cat(returns) if returns else [], places, **options)
    return list(torch.split(episode + step_weight * step, lengths)) if lengths else []


def optimal_token_baseline(
    rewards: Sequence[Rewards],
    logprobs: Sequence[Rewards],
    sum_squares: Sequence[Rewards],
    groups: Groups | None = None,
    *,
    masks: Sequence[Rewards] | None = None,
    weights: Sequence[Rewards] | None = None,
    alone: Literal["return", "zero"] = "return",
) -> list[Tensor]:
    """Return minus, at each step, the group's mean return weighted by each response's energy so far: G_t - Σ W_t G_t / Σ W_t.

    rewards       N rows of [T_i]  unitless, one per token; only the last is not 0 where the whole response is rewarded
    logprobs      N rows of [T_i]  nats, of the sampled tokens under the policy that is trained
    sum_squares   N rows of [T_i]  Σ_v p_v² of the whole distribution at each token
    groups        [N] ids, usually of prompts; None: one group
    masks         N rows of [T_i]  not 0 at the policy's own tokens; None: all. Others get 0 and are no steps: the k-th own
                                   token is compared with the k-th of the other responses
    weights       N rows of [T_i]  weights of a rollout correction, such as min(c, 2); None: 1
    returns       N rows of [T_i]

    G_t is the sum of this and all later rewards at own tokens. The energy W_t = Σ_{j <= t} w_j² (1 - 2 p_j + Σ_v p_v²) is
    the squared norm of the gradient of the logits so far: where it is large the return says more about the noise of the
    gradient, and this baseline has the least variance. A step that only one response of the group reaches has nothing to be
    compared with; `alone`: it gets its `return`, without a baseline, as in verl, or `zero`, as a group of one has elsewhere.

    Li et al. 2026, arXiv:2602.07078; verl's tir_optimal_token_baseline, and its optimal_token_baseline where every response
    begins with the policy's own tokens. Σ p² is not among a model's outputs: compute it from logits with
    `(2 * logits.log_softmax(-1)).logsumexp(-1).exp()`. Raises LengthMismatchError, NonFiniteLossInput, and LossConfigError
    where Σ p² is less than the square of the token's own probability.
    """
    one_of("alone", alone, ("return", "zero"))
    ids = group_ids(groups, len(rewards))
    for name, given in (("logprobs", logprobs), ("sum_squares", sum_squares), ("masks", masks), ("weights", weights)):
        if given is not None and len(given) != len(rewards):
            raise LengthMismatchError(f"there are {len(rewards)} rows of rewards but {len(given)} of {name}")
    responses = [
        _Response.of(f"response {i}", row, logprobs[i], sum_squares[i], _at(masks, i), _at(weights, i))
        for i, row in enumerate(rewards)
    ]
    members: dict[Hashable, list[_Response]] = {}
    for one, response in zip(ids, responses, strict=True):
        members.setdefault(one, []).append(response)
    for group in members.values():
        for step in range(max(len(one.energy) for one in group)):
            _take_baseline([one for one in group if step < len(one.energy)], step, alone)
    return [one.at_tokens() for one in responses]


@dataclass(frozen=True)
class _Response:
    """The policy's own steps of a response. is_own: [T] bool. values, energy: [steps]; values are returns, then advantages."""

    is_own: np.ndarray
    values: np.ndarray
    energy: np.ndarray

    @classmethod
    def of(
        cls,
        who: str,
        rewards: Rewards,
        logprobs: Rewards,
        sum_squares: Rewards,
        mask: Rewards | None,
        weights: Rewards | None,
    ) -> _Response:
        given_rewards = finite(numbers(rewards, f"{who}: rewards", PER_TOKEN), f"{who}: reward")
        returns = discounted(given_rewards, 1.0, mask=mask).numpy()
        is_own = np.ones(len(returns), dtype=bool) if mask is None else numbers(mask, f"{who}: mask", PER_TOKEN) != 0
        given = {"logprobs": logprobs, "sum_squares": sum_squares, **({} if weights is None else {"weights": weights})}
        own: dict[str, np.ndarray] = {}
        for name, one in given.items():
            row = numbers(one, f"{who}: {name}", PER_TOKEN)
            if len(row) != len(returns):
                raise LengthMismatchError(f"{who}: there are {len(returns)} rewards but {len(row)} {name}")
            own[name] = finite(row[is_own], f"{who}: {name} of step")
        chosen = np.exp(own["logprobs"])
        if (wrong := own["sum_squares"] < chosen**2 - ROUNDING).any():
            at = int(np.flatnonzero(wrong)[0])
            raise LossConfigError(
                f"{who}: sum_squares is {own['sum_squares'][at]:g} at step {at}, less than the square of the token's own "
                f"probability, {chosen[at] ** 2:g}: it is the sum of all squared probabilities there"
            )
        norm = np.maximum(1 - 2 * chosen + own["sum_squares"], 0.0)
        return cls(is_own, returns[is_own], np.cumsum(norm * own["weights"] ** 2 if weights is not None else norm))

    def at_tokens(self) -> Tensor:
        """[T], 0 at tokens that are no steps."""
        tokens = np.zeros(len(self.is_own))
        tokens[self.is_own] = self.values
        return torch.from_numpy(tokens)


def _at(rows: Sequence[Rewards] | None, i: int) -> Rewards | None:
    return None if rows is None else rows[i]


def _take_baseline(there: Sequence[_Response], step: int, alone: str) -> None:
    """Subtract the baseline from the returns of the responses that reach a step."""
    if len(there) == 1:
        (only,) = there
        only.values[step] *= alone == "return"
        return
    returns, energy = (np.array([getattr(one, name)[step] for one in there]) for name in ("values", "energy"))
    if np.ptp(returns) <= FLOOR * np.abs(returns).max():
        advantages = np.zeros(len(there))
    else:
        energy = energy if energy.any() else np.ones(len(there))  # all certain: their plain mean
        own = returns - returns.mean()
        advantages = own - (energy * own).sum() / energy.sum()
    for one, advantage in zip(there, advantages, strict=True):
        one.values[step] = advantage


def _check_rows(who: str, rewards: Sequence[np.ndarray], states: Sequence[Sequence[Hashable]]) -> None:
    """One state per reward."""
    if len(states) != len(rewards):
        raise LengthMismatchError(f"{who}: there are {len(rewards)} rows of rewards but {len(states)} of states")
    for i, (row, own) in enumerate(zip(rewards, states, strict=True)):
        if len(row) != len(own):
            raise LengthMismatchError(f"{who}: row {i} has {len(row)} rewards but {len(own)} states; give one per step")
