"""Dealing a call's micro-batches to ranks: as many for each, those that run at one time alike in tokens.

Ranks that gather a sharded model's layers wait for each other in every micro-batch, so a call takes as long as the largest
micro-batch of each round. Every rank works the same plan out from the same lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from .micro_batches import PrefixGroup, plan_micro_batches

#: The datum indices of each micro-batch.
Cuts = list[list[int]]


def plan_shares(
    lengths: Sequence[int],
    *,
    ranks: int,
    tokens: int | None,
    pairs: bool,
    padded: bool,
    prefix_groups: Sequence[PrefixGroup] = (),
    units: Sequence[Sequence[int]] | None = None,
) -> list[Cuts]:
    """For each rank, the datum indices of its micro-batches; [] where it has nothing to do in that round.

    All ranks have as many: the fewest with which each keeps within `tokens`. With that number micro-batches are as small as
    can be, so that ranks have about as many tokens as each other. A rank's k-th micro-batch runs beside every other rank's.
    For one rank this is `plan_micro_batches`, which has the other arguments; that runs once for each halving of the budget.
    """
    plan = partial(plan_micro_batches, lengths, pairs=pairs, padded=padded, prefix_groups=prefix_groups, units=units)
    cuts = plan(tokens=tokens)
    if ranks == 1:
        return [cuts]
    rounds = -(-len(cuts) // ranks)
    all_in_one = len(lengths) * max(lengths, default=0)
    budget = all_in_one if tokens is None else min(tokens, all_in_one)
    cuts = _smallest(lambda tokens: plan(tokens=tokens), rounds * ranks, budget)
    cuts = _largest_first(cuts, lengths, padded, prefix_groups)
    cuts += [[] for _ in range(rounds * ranks - len(cuts))]
    return [cuts[rank::ranks] for rank in range(ranks)]


def _smallest(plan: Callable[[int], Cuts], most: int, budget: int) -> Cuts:
    """The cuts of the smallest budget that makes `most` micro-batches at the most, as `budget` does; by bisection."""
    low, high = 1, budget
    while low < high:
        middle = (low + high) // 2
        if len(plan(middle)) <= most:
            high = middle
        else:
            low = middle + 1
    return plan(high)


def _largest_first(cuts: Cuts, lengths: Sequence[int], padded: bool, prefix_groups: Sequence[PrefixGroup]) -> Cuts:
    """The cuts by the tokens that they compute: padding too where there is any, else a shared prefix once."""
    group_of = {i: g for g, group in enumerate(prefix_groups) for i in group.members}

    def tokens(cut: Sequence[int]) -> int:
        if padded or not prefix_groups:
            return len(cut) * max(lengths[i] for i in cut) if padded else sum(lengths[i] for i in cut)
        prefixes = {group_of[i]: prefix_groups[group_of[i]].prefix for i in cut}
        return sum(prefixes.values()) + sum(lengths[i] - prefixes[group_of[i]] for i in cut)

    return sorted(cuts, key=lambda cut: -tokens(cut))
