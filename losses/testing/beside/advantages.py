"""Laws of functions that compute advantages from rewards."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from hypothesis import strategies as st
from torch import Tensor

from ....datums.errors import LossCheckError
from ..report import Report
from .helpers import TOLERANCE, Law, name_of, report_laws, same_numbers, shown

Advantages = Callable[[list[float], list[int]], Any]
Batch = tuple[list[float], list[int]]
#: Rewards that all samples of a group share; the last two have no exact float.
LEVELS = (0.0, 1.0, -3.0, 1000.0, 0.1, 1 / 3)
#: Rounding error of a zero after whitening over the batch.
ROUNDING = 1e-9
#: Index at which a reward that is not finite is inserted.
BAD_INDEX = 3


def check_advantages(
    function: Advantages,
    *,
    scaling: Literal["invariant", "equivariant"] = "invariant",
    groups_are_apart: bool = True,
    expected_failed_checks: Mapping[str, str] | None = None,
    on_fail: Literal["raise", "report"] = "raise",
    max_examples: int | None = None,
) -> Report:
    """Run every law of group-relative advantages on a function (rewards, groups) -> one advantage per reward.

        check_advantages(group_advantages)
        check_advantages(rloo, scaling="equivariant")

    scaling: whether multiplying all rewards by c > 0 keeps the advantages, or multiplies them by c. groups_are_apart:
    whether a group's advantages depend only on its own rewards. expected_failed_checks: {law: reason}; such a law must
    fail. on_fail: "raise" a LossCheckError that holds the report, or "report" to only return it.
    """
    laws: dict[str, Law] = {
        "one_a_reward": Law(_one_a_reward, _batches()),
        "shift_invariance": Law(_shift_invariance, st.tuples(_batches(), st.integers(-8, 8))),
        f"scale_{scaling[:-1]}ce": Law(
            _scale_invariance if scaling == "invariant" else _scale_equivariance,
            st.tuples(_batches(), st.sampled_from([2.0, 3.0, 10.0])),
        ),
        "sum_is_zero": Law(_sum_is_zero, _batches()),
        "permutation": Law(_permutation, _batches().flatmap(lambda b: st.tuples(st.just(b), _orders(b)))),
        "equal_rewards_give_zero": Law(_equal_rewards_give_zero, st.tuples(st.sampled_from(LEVELS), st.integers(1, 7))),
        "a_group_of_one_gives_zero": Law(_a_group_of_one_gives_zero, _batches()),
        "noise_is_not_amplified": Law(
            _noise_is_not_amplified, st.tuples(st.sampled_from(LEVELS[1:]), st.integers(2, 7))
        ),
        "nan_stays_alone": Law(_nan_stays_alone, st.tuples(_batches(), st.sampled_from([float("nan"), float("inf")]))),
    }
    if groups_are_apart:
        laws["groups_are_apart"] = Law(_groups_are_apart, st.tuples(_batches(), st.integers(0, 8)))
    return report_laws(name_of(function), function, laws, expected_failed_checks, on_fail, max_examples)


@st.composite
def _batches(draw: Any) -> Batch:
    """Two or three groups of two to five samples, interleaved; rewards are multiples of a quarter."""
    sizes = draw(st.lists(st.integers(2, 5), min_size=2, max_size=3))
    ids = [group for place in range(max(sizes)) for group, size in enumerate(sizes) if place < size]
    count = len(ids)
    quarters = draw(st.lists(st.integers(0, 12), min_size=count, max_size=count))
    return [quarter / 4 for quarter in quarters], ids


def _orders(batch: Batch) -> st.SearchStrategy[list[int]]:
    return st.permutations(range(len(batch[0])))


def _advantages(function: Any, rewards: Sequence[float], groups: Sequence[int]) -> Tensor:
    advantages = torch.as_tensor(function(list(rewards), list(groups))).detach().double()
    if tuple(advantages.shape) != (len(rewards),):
        raise LossCheckError(
            f"for {len(rewards)} rewards it returns advantages of shape {list(advantages.shape)}, not one per reward"
        )
    return advantages


def _one_a_reward(function: Any, batch: Batch) -> None:
    advantages = _advantages(function, *batch)
    if not bool(advantages.isfinite().all()):
        raise LossCheckError(f"the advantages are {shown(advantages)} for {batch}")


def _shift_invariance(function: Any, example: tuple[Batch, int]) -> None:
    (rewards, groups), shift = example
    moved = _advantages(function, [r + shift for r in rewards], groups)
    same_numbers(
        moved, _advantages(function, rewards, groups), f"with {shift} added to every reward the advantages are", example
    )


def _scale_invariance(function: Any, example: tuple[Batch, float]) -> None:
    (rewards, groups), factor = example
    scaled = _advantages(function, [factor * r for r in rewards], groups)
    same_numbers(
        scaled, _advantages(function, rewards, groups), f"for rewards times {factor} the advantages are", example
    )


def _scale_equivariance(function: Any, example: tuple[Batch, float]) -> None:
    (rewards, groups), factor = example
    scaled = _advantages(function, [factor * r for r in rewards], groups)
    same_numbers(
        scaled,
        factor * _advantages(function, rewards, groups),
        f"for rewards times {factor} the advantages are",
        example,
    )


def _sum_is_zero(function: Any, batch: Batch) -> None:
    advantages = _advantages(function, *batch)
    total = float(advantages.sum())
    if abs(total) > TOLERANCE * max(1.0, float(advantages.abs().sum())):
        raise LossCheckError(f"the advantages {shown(advantages)} add up to {total:.6g}, not 0, for {batch}")


def _permutation(function: Any, example: tuple[Batch, list[int]]) -> None:
    (rewards, groups), places = example
    moved = _advantages(function, [rewards[i] for i in places], [groups[i] for i in places])
    same_numbers(
        moved, _advantages(function, rewards, groups)[places], "in another order of samples the advantages are", example
    )


def _groups_are_apart(function: Any, example: tuple[Batch, int]) -> None:
    (rewards, groups), shift = example
    changed = [r * 2 + shift if g == 0 else r for r, g in zip(rewards, groups, strict=True)]
    others = torch.tensor([g != 0 for g in groups])
    after, before = (_advantages(function, given, groups)[others] for given in (changed, rewards))
    same_numbers(after, before, "with other rewards in group 0 the advantages outside are", example)


def _equal_rewards_give_zero(function: Any, example: tuple[float, int]) -> None:
    reward, count = example
    advantages = _advantages(function, [reward] * count, [0] * count)
    if not bool((advantages == 0).all()):
        raise LossCheckError(f"{count} rewards of {reward!r} give {shown(advantages)}, not exactly 0")


def _a_group_of_one_gives_zero(function: Any, batch: Batch) -> None:
    rewards, groups = batch
    last = float(_advantages(function, [*rewards, 5.0], [*groups, 99])[-1])
    if not abs(last) <= ROUNDING:
        raise LossCheckError(f"a group of one gives {last:.6g}, not 0, beside {batch}")


def _noise_is_not_amplified(function: Any, example: tuple[float, int]) -> None:
    reward, count = example
    single = torch.full((count,), reward, dtype=torch.float32)
    single[0] = torch.nextafter(single[0], torch.tensor(float("inf")))  # the last bit of float32
    advantages = _advantages(function, single.double().tolist(), [0] * count)
    if float(advantages.abs().max()) > 1e-3:
        raise LossCheckError(
            f"{count} rewards of {reward!r}, one of them larger by float32's last bit, give {shown(advantages)}: the rounding "
            "error is divided by itself"
        )


def _nan_stays_alone(function: Any, example: tuple[Batch, float]) -> None:
    """It raises with the index in the message, or the other advantages stay as they are without that reward."""
    (rewards, groups), bad = example
    try:
        advantages = _advantages(function, _with(bad, rewards), _with(groups[0], groups))
    except LossCheckError:
        raise
    except Exception as error:
        if not re.search(rf"\b{BAD_INDEX}\b", str(error)):
            raise LossCheckError(f"it raises for a reward of {bad} without naming its index: {error}") from None
        return
    expected = torch.tensor(_with(0.0, _advantages(function, rewards, groups).tolist()), dtype=torch.float64)
    same_numbers(advantages, expected, f"beside a reward of {bad} (which itself gets 0) the advantages are", example)


def _with(extra: Any, values: Sequence[Any]) -> list[Any]:
    return [*values[:BAD_INDEX], extra, *values[BAD_INDEX:]]
