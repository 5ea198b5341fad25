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

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import LengthMismatchError, LossConfigError, NonFiniteLossInput, ShapeError

Rewards = Sequence[float] | np.ndarray | Tensor
Groups = Sequence[Hashable] | np.ndarray | Tensor
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
    """
    _one_of("center", center, ("mean", "leave-one-out"))
    _one_of("scale", scale, ("none", "group", "batch"))
    _check_numbers(ddof, epsilon, floor)
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
    table = _array(rewards, 2)
    if weights is not None and len(weights) != table.shape[1]:
        raise LengthMismatchError(
            f"gdpo: there are {table.shape[1]} reward functions but {len(weights)} weights; give one weight per function"
        )
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
    _check_numbers(0, epsilon, 0)
    if (values < 0).any():
        at = int(np.flatnonzero(values < 0)[0])
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
    tokens = _array(lengths, 1)
    _same_length("opo", values, tokens, "lengths")
    if not (np.isfinite(tokens) & (tokens > 0)).all():
        at = int(np.flatnonzero(~(np.isfinite(tokens) & (tokens > 0)))[0])
        raise LossConfigError(f"opo weights by lengths, which must be above 0, but length {at} is {tokens[at]}")
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
    _same_length("remax", values, baseline, "greedy_rewards")
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

    groups: None for REINFORCE++, given for its variant with a baseline. lengths: number of tokens of each response; without
    it every sample counts once. For a KL penalty, change the rewards before, or use `returns.kl_penalized_advantages` after.
    """
    values, members = _grouped(rewards, groups, nonfinite)
    finite = np.concatenate(members) if members else np.zeros(0, dtype=np.int64)
    tokens = np.ones(len(values)) if lengths is None else _array(lengths, 1)
    _same_length("reinforce_plus_plus", values, tokens, "lengths")
    if groups is not None:
        values = centred(rewards, groups, nonfinite=nonfinite).numpy()
    advantages = np.zeros(len(values))
    own, weights = values[finite], tokens[finite]
    if len(own) and not _is_level(own, FLOOR):
        own = own - own.mean()
        own = own - (weights * own).sum() / weights.sum()
        spread = (weights * own**2).sum() / max(weights.sum() - 1, 1)
        advantages[finite] = own / (np.sqrt(spread) + epsilon)
    return torch.from_numpy(advantages)


def _grouped(rewards: Rewards, groups: Groups | None, nonfinite: NonFinite) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rewards as float64, and the indices of the finite ones by group, in order of first appearance."""
    _one_of("nonfinite", nonfinite, ("raise", "exclude"))
    values = _array(rewards, 1)
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


def group_ids(groups: Groups | None, count: int) -> list[Hashable]:
    """One id per reward; all the same without groups. Raises LengthMismatchError."""
    if groups is None:
        return [0] * count
    ids = groups.tolist() if isinstance(groups, np.ndarray | Tensor) else list(groups)
    if len(ids) != count:
        raise LengthMismatchError(f"there are {count} rewards but {len(ids)} group ids; give one id per reward")
    return ids


def _array(values: Any, dimensions: int) -> np.ndarray:
    array = (
        values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values, dtype=np.float64)
    )
    if array.size == 0 and array.ndim < dimensions:
        array = array.reshape((0,) * dimensions)
    if array.ndim != dimensions:
        shape = "one number per sample" if dimensions == 1 else "one row per sample and one column per reward function"
        raise ShapeError(f"rewards and lengths must be {shape}, got shape {list(array.shape)}")
    return array


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
    own = _centred(values)
    return float(np.sqrt((own**2).sum() / (len(own) - ddof)))


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise LossConfigError(f"{name}={value!r} is none of {', '.join(map(repr, known))}")


def _check_numbers(ddof: int, epsilon: float, floor: float) -> None:
    if ddof not in (0, 1):
        raise LossConfigError(f"ddof={ddof!r}: squares are divided by n - ddof, and ddof is 0 or 1")
    for name, value in (("epsilon", epsilon), ("floor", floor)):
        if not 0 <= value < np.inf:
            raise LossConfigError(f"{name}={value!r} must be a finite number, 0 or more")


def _same_length(who: str, values: np.ndarray, others: np.ndarray, name: str) -> None:
    if len(values) != len(others):
        raise LengthMismatchError(
            f"{who}: there are {len(values)} rewards but {len(others)} {name}; give one per reward"
        )
