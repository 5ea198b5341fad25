"""Advantages from one reward per sample and the group it belongs to, usually that of its prompt.

Rewards are a list, an array or a tensor; groups are ids of any type, one per sample, or None for a single group. Every
function computes in float64 and returns a float64 tensor [n] on the CPU; datums round to float32.

Groups without a signal get exactly 0: a group of one, and a group whose rewards differ by at most `floor` times the
largest of them (1e-6, the rounding of float32), so that rounding errors are never divided by themselves. A reward of NaN
or infinity raises NonFiniteLossInput; with nonfinite="exclude" it gets advantage 0 and is left out of all statistics.

For advantages over the steps of one sample, as in GAE, see `from_values`. `lossbook.losses.testing.check_advantages` holds
the laws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import LengthMismatchError, LossConfigError, NonFiniteLossInput, ShapeError
from .arguments import (
    Groups,
    Rewards,
    check_number,
    check_size,
    group_ids,
    numbers,
    one_of,
    positive_lengths,
    same_length,
)

NonFinite = Literal["raise", "exclude"]

#: Rewards that differ by less than this share of the largest count as equal: it is the rounding of float32.
FLOOR = 1e-6


def group_advantages(
    rewards: Rewards,
    groups: Groups | None = None,
    *,
    center: Literal["mean", "leave-one-out"] = "mean",
    scale: Literal["none", "group", "batch"] = "group",
    ddof: int = 1,
    epsilon: float = 1e-6,
    floor: float = FLOOR,
    nonfinite: NonFinite = "raise",
) -> Tensor:
    """(r - baseline) / (deviation + epsilon) [n]: GRPO's by default. Shao et al. 2024, arXiv:2402.03300 section 4.1.2.

    center: the baseline is the group's mean, or the mean of the other samples in it. scale: divide by the deviation of the
    group, of the whole batch, or not at all. ddof: 1 divides squares by n - 1, 0 by n. epsilon: added to the deviation.
    Systems differ in epsilon: Fireworks 1e-8, verl and SkyRL 1e-6, TRL 1e-4; Tinker's cookbook and prime-rl do not scale.
    verl leaves a group of one its reward.
    """
    one_of("center", center, ("mean", "leave-one-out"))
    one_of("scale", scale, ("none", "group", "batch"))
    if ddof not in (0, 1):
        raise LossConfigError(f"ddof={ddof!r}: squares are divided by n - ddof, and ddof is 0 or 1")
    _check_numbers(epsilon=epsilon, floor=floor)
    values, members = _grouped(rewards, groups, nonfinite)
    advantages = np.zeros(len(values))
    everywhere = values[np.concatenate(members)] if members else values
    for group in _unequal(values, members, floor):
        own = _centred(values[group])
        advantages[group] = own * (len(own) / (len(own) - 1)) if center == "leave-one-out" else own
        if scale != "none":
            advantages[group] /= _deviation(own if scale == "group" else everywhere, ddof) + epsilon
    return torch.from_numpy(advantages)


def centred(rewards: Rewards, groups: Groups | None = None, *, nonfinite: NonFinite = "raise") -> Tensor:
    """r - group mean [n], without a deviation, as in Dr. GRPO (arXiv:2503.20783), Tinker's cookbook and prime-rl."""
    return group_advantages(rewards, groups, scale="none", nonfinite=nonfinite)


def rloo(rewards: Rewards, groups: Groups | None = None, *, nonfinite: NonFinite = "raise") -> Tensor:
    """r - mean of the others in the group [n]: unbiased. Ahmadian et al. 2024, arXiv:2402.14740."""
    return group_advantages(rewards, groups, center="leave-one-out", scale="none", nonfinite=nonfinite)


def batch_scaled(
    rewards: Rewards, groups: Groups | None = None, *, epsilon: float = 1e-4, nonfinite: NonFinite = "raise"
) -> Tensor:
    """(r - group mean) / (deviation of all rewards + epsilon) [n]. Lite PPO, arXiv:2508.08221; TRL scale_rewards="batch"."""
    return group_advantages(rewards, groups, scale="batch", epsilon=epsilon, nonfinite=nonfinite)


def gpg(
    rewards: Rewards,
    groups: Groups | None = None,
    *,
    scale: Literal["none", "group"] = "none",
    counted: Literal["unequal", "nonzero"] = "unequal",
    nonfinite: NonFinite = "raise",
) -> Tensor:
    """α (r - group mean) / F [n], where α is the number of samples over that of those with a signal. arXiv:2504.02546.

    A batch in which many groups are all right or all wrong so has gradients of the usual size. scale: F is 1, or the group's
    deviation. counted: a sample has a signal if its group's rewards differ; "nonzero": if its reward is not 0, as verl counts.
    """
    one_of("counted", counted, ("unequal", "nonzero"))
    one_of("scale", scale, ("none", "group"))
    advantages = group_advantages(rewards, groups, scale=scale, nonfinite=nonfinite)
    values, members = _grouped(rewards, groups, nonfinite)
    finite = values[np.isfinite(values)]
    own = np.count_nonzero(finite) if counted == "nonzero" else sum(map(len, _unequal(values, members, FLOOR)))
    return advantages * (len(finite) / max(own, 1))


def gdpo(
    rewards: Sequence[Rewards] | np.ndarray | Tensor,
    groups: Groups | None = None,
    *,
    weights: Sequence[float] | None = None,
    epsilon: float = 1e-4,
    nonfinite: NonFinite = "raise",
) -> Tensor:
    """Several reward functions [n, F]: each normalised within its group, weighted, summed, and whitened over the batch [n].

    A function with small values so counts as much as one with large values. TRL's
    multi_objective_aggregation="normalize_then_sum". With nonfinite="exclude" a sample counts in the functions that gave it
    a finite reward; one without any gets 0.
    """
    table = numbers(rewards, "rewards", "one row per sample and one column per reward function", dimensions=2)
    if len(table) and not table.shape[1]:
        raise ShapeError(f"gdpo: {len(table)} samples have no reward function between them")
    if weights is not None and len(weights) != table.shape[1]:
        raise LengthMismatchError(
            f"gdpo: there are {table.shape[1]} reward functions but {len(weights)} weights; give one weight per function"
        )
    for weight in weights or ():
        check_number("weights", weight)
    total = torch.zeros(len(table), dtype=torch.float64)
    for column, weight in enumerate([1.0] * table.shape[1] if weights is None else weights):
        total += weight * group_advantages(table[:, column], groups, epsilon=epsilon, nonfinite=nonfinite)
    unscored = ~np.isfinite(table).any(axis=1)
    total[torch.from_numpy(unscored)] = torch.nan
    return group_advantages(total, epsilon=epsilon, nonfinite=nonfinite)


def maxrl(
    rewards: Rewards, groups: Groups | None = None, *, epsilon: float = 1e-6, nonfinite: NonFinite = "raise"
) -> Tensor:
    """(r - group mean) / (group mean + epsilon) [n]: towards maximum likelihood of success. arXiv:2602.02710.

    For rewards >= 0, such as right or wrong. Raises LossConfigError for a negative reward, because the mean could be 0.
    """
    values, members = _grouped(rewards, groups, nonfinite)
    _check_numbers(epsilon=epsilon)
    if (negative := np.isfinite(values) & (values < 0)).any():
        at = int(np.flatnonzero(negative)[0])
        raise LossConfigError(
            f"maxrl divides by the mean reward and takes rewards >= 0, but reward {at} is {values[at]}"
        )
    advantages = np.zeros(len(values))
    for group in _unequal(values, members, FLOOR):
        advantages[group] = _centred(values[group]) / (values[group].mean() + epsilon)
    return torch.from_numpy(advantages)


def opo(rewards: Rewards, lengths: Rewards, groups: Groups | None = None, *, nonfinite: NonFinite = "raise") -> Tensor:
    """r - Σ length r / Σ length over the group [n]: the baseline of least variance, on policy. arXiv:2505.23585.

    lengths: number of tokens of each response, above 0.
    """
    values, members = _grouped(rewards, groups, nonfinite)
    tokens = positive_lengths(lengths, "opo", np.isfinite(values))
    advantages = np.zeros(len(values))
    for group in _unequal(values, members, FLOOR):
        own, weights = _centred(values[group]), tokens[group]
        advantages[group] = own - (weights * own).sum() / weights.sum()
    return torch.from_numpy(advantages)


def remax(rewards: Rewards, greedy_rewards: Rewards) -> Tensor:
    """r - reward of the greedy response to the same prompt [n]. Li et al. 2023, arXiv:2310.10505.

    greedy_rewards: one per sample, the same for all samples of a prompt. Raises NonFiniteLossInput for NaN or infinity.
    """
    values, _ = _grouped(rewards, None, "raise")
    baseline, _ = _grouped(greedy_rewards, None, "raise")
    same_length("remax", values, baseline, "greedy_rewards")
    return torch.from_numpy(values - baseline)


def pass_at_k(rewards: Rewards, groups: Groups | None = None, *, nonfinite: NonFinite = "raise") -> Tensor:
    """Best reward - second best for the group's best sample, 0 for all others [n]. arXiv:2503.19595; verl grpo_passk, unscaled.

    A group whose best two rewards are equal gets only zeros: one more right answer does not make a pass more likely.
    """
    values, members = _grouped(rewards, groups, nonfinite)
    advantages = np.zeros(len(values))
    for group in _unequal(values, members, FLOOR):
        second, best = np.argsort(values[group], kind="stable")[-2:]
        advantages[group[best]] = values[group[best]] - values[group[second]]
    return torch.from_numpy(advantages)


def reinforce_plus_plus(
    rewards: Rewards,
    groups: Groups | None = None,
    *,
    lengths: Rewards | None = None,
    epsilon: float = 1e-8,
    nonfinite: NonFinite = "raise",
) -> Tensor:
    """Rewards whitened over the batch's tokens [n]. Hu 2025, arXiv:2501.03262. With groups, their means are subtracted first.

    groups: None for REINFORCE++, given for its variant with a baseline. lengths: number of tokens of each response, above 0;
    without it every sample counts once. For rewards of single tokens, see `returns.reinforce_plus_plus_tokens`. For a KL
    penalty, change the rewards before, or use `returns.kl_penalized_advantages` after.
    """
    values, members = _grouped(rewards, groups, nonfinite)
    finite = np.concatenate(members) if members else np.zeros(0, dtype=np.int64)
    tokens = np.ones(len(values))
    if lengths is not None:
        tokens = positive_lengths(lengths, "reinforce_plus_plus", np.isfinite(values))
    _check_numbers(epsilon=epsilon)
    if groups is not None:
        values = centred(rewards, groups, nonfinite=nonfinite).numpy()
    advantages = np.zeros(len(values))
    advantages[finite] = whitened(values[finite], tokens[finite], epsilon)
    return torch.from_numpy(advantages)


def whitened(values: np.ndarray, weights: np.ndarray, epsilon: float) -> np.ndarray:
    """(value - mean) / (deviation + epsilon), where each value counts `weights` times; 0 if all values are equal."""
    if not len(values) or _is_level(values, FLOOR):
        return np.zeros(len(values))
    own = values - values.mean()
    own = own - (weights * own).sum() / weights.sum()
    return own / (_root_mean_square(own, weights, max(weights.sum() - 1, 1)) + epsilon)


def _grouped(rewards: Rewards, groups: Groups | None, nonfinite: NonFinite) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rewards as float64, and the indices of the finite ones by group, in order of first appearance."""
    one_of("nonfinite", nonfinite, ("raise", "exclude"))
    values = numbers(rewards, "rewards", "one number per sample")
    check_size(values)
    finite = np.isfinite(values)
    if nonfinite == "raise" and not finite.all():
        at = int(np.flatnonzero(~finite)[0])
        raise NonFiniteLossInput(
            f"reward {at} of {len(values)} is {values[at]}. Drop such a sample, or leave it out of all statistics with "
            'nonfinite="exclude", which gives it advantage 0'
        )
    ids = group_ids(groups, len(values))
    members: dict[Any, list[int]] = {}
    for i in np.flatnonzero(finite).tolist():
        members.setdefault(ids[i], []).append(i)
    return values, [np.array(indices) for indices in members.values()]


def _unequal(values: np.ndarray, members: Sequence[np.ndarray], floor: float) -> list[np.ndarray]:
    """The groups whose rewards differ."""
    return [group for group in members if not _is_level(values[group], floor)]


def _is_level(values: np.ndarray, floor: float) -> bool:
    """Whether values are equal up to rounding."""
    return bool(values.max() - values.min() <= floor * np.abs(values).max())


def _centred(values: np.ndarray) -> np.ndarray:
    """Values minus their mean; the second pass removes the rounding error of the first."""
    once = values - values.mean()
    return once - once.mean()


def _deviation(values: np.ndarray, ddof: int) -> float:
    return _root_mean_square(_centred(values), np.ones(len(values)), len(values) - ddof)


def _root_mean_square(values: np.ndarray, weights: np.ndarray, count: float) -> float:
    """sqrt(Σ weight value² / count), of values divided by a power of two first: the square of 1e-200 is 0."""
    scale = 2.0 ** int(np.frexp(np.abs(values).max())[1])
    return scale * float(np.sqrt((weights * (values / scale) ** 2).sum() / count))


def _check_numbers(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 <= value < np.inf:
            raise LossConfigError(f"{name}={value!r} must be a finite number, 0 or more")
