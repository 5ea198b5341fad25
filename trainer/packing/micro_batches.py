"""Cutting a call's datums into micro-batches by a budget of tokens, never between datums that a loss must see together.

Sequences that begin with the same tokens form a group: a packed row computes their prefix once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: A shorter prefix is not worth a call of its own.
SHORTEST_PREFIX = 16


@dataclass(frozen=True)
class PrefixGroup:
    """Sequences that begin with the same `prefix` tokens; a single sequence has a prefix of 0."""

    members: tuple[int, ...]
    prefix: int

    def tokens(self, lengths: Sequence[int]) -> int:
        """Tokens to compute: the prefix once, and the rest of each member."""
        return self.prefix + sum(lengths[i] - self.prefix for i in self.members)


def plan_micro_batches(
    lengths: Sequence[int],
    *,
    tokens: int | None,
    pairs: bool,
    padded: bool,
    prefix_groups: Sequence[PrefixGroup] = (),
    units: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """Datum indices of each micro-batch: similar lengths together, at most `tokens` tokens each (None for no limit).

    lengths        tokens of each datum
    pairs          keep datums 2i and 2i+1 together, in this order
    padded         count the padding to the longest of the micro-batch too
    prefix_groups  datums that share a prefix, which a packed row holds once; each datum is in one group. A group stays
                   together unless it exceeds the budget
    units          datums that stay together whatever the budget, in place of pairs; a prefix group is one of them then

    Longest first: the largest micro-batch runs first, so if memory suffices for it, it suffices for all. A pair, datum
    or unit longer than the budget gets a micro-batch of its own. O(n log n) in datums.
    """
    budget = math.inf if tokens is None else tokens
    width = 2 if pairs else 1
    groups = [list(range(i, min(i + width, len(lengths)))) for i in range(0, len(lengths), width)]
    groups = groups if units is None else [list(unit) for unit in units]
    if padded or not prefix_groups:
        costs = [sum(lengths[i] for i in group) for group in groups]
    else:
        if units is None:
            groups = [part for group in prefix_groups for part in _within_budget(group, lengths, budget, width)]
        prefixes = {i: group.prefix for group in prefix_groups for i in group.members}
        costs = [PrefixGroup(tuple(group), prefixes[group[0]]).tokens(lengths) for group in groups]
    longest = [max((lengths[i] for i in group), default=0) for group in groups]
    order = sorted(range(len(groups)), key=lambda g: -(longest[g] if padded or not prefix_groups else costs[g]))
    batches: list[list[int]] = []
    used = row_length = 0
    for g in order:
        group = groups[g]
        cost = len(group) * row_length if padded and batches else costs[g]
        if not batches or used + cost > budget:
            batches.append([])
            row_length = longest[g]
            used = 0
            cost = len(group) * row_length if padded else costs[g]
        batches[-1].extend(group)
        used += cost
    return batches


def find_prefix_groups(sequences: Sequence[np.ndarray], shortest: int = SHORTEST_PREFIX) -> list[PrefixGroup]:
    """Group sequences by shared prefixes of at least `shortest` tokens, to compute as few tokens as possible; O(tokens
    + n log n).

    In lexicographic order, sequences that share most are neighbours. A group grows along that order as long as this saves
    tokens: a system prompt common to all does not break up groups that share a longer prompt.
    """
    keys = [sequence.astype(">i8").tobytes() for sequence in sequences]  # big-endian: bytes compare as the tokens do
    order = sorted(range(len(sequences)), key=keys.__getitem__)
    groups: list[PrefixGroup] = []
    members, prefix = order[:1], 0
    for previous, i in itertools.pairwise(order):
        common = _common(sequences[previous], sequences[i])
        grown = common if len(members) == 1 else min(prefix, common)
        if grown >= shortest and grown * len(members) >= prefix * (len(members) - 1):
            members, prefix = [*members, i], grown
            continue
        groups.append(PrefixGroup(tuple(members), prefix))
        members, prefix = [i], 0
    if members:
        groups.append(PrefixGroup(tuple(members), prefix))
    return groups


def pair_prefix_groups(sequences: Sequence[np.ndarray]) -> list[PrefixGroup]:
    """Datums 2i and 2i+1 with the prefix they share; 0 where it is too short to be worth sharing."""
    groups = []
    for i in range(0, len(sequences) - 1, 2):
        common = _common(sequences[i], sequences[i + 1])
        groups.append(PrefixGroup((i, i + 1), common if common >= SHORTEST_PREFIX else 0))
    return groups


def unit_prefix_groups(sequences: Sequence[np.ndarray], units: Sequence[Sequence[int]]) -> list[PrefixGroup]:
    """Each unit of datums with the prefix that all of them share; 0 where it is too short to be worth sharing."""
    groups = []
    for unit in units:
        common = min((_common(sequences[unit[0]], sequences[i]) for i in unit[1:]), default=0)
        groups.append(PrefixGroup(tuple(unit), common if common >= SHORTEST_PREFIX else 0))
    return groups


def prefix_groups_of(
    sequences: Sequence[np.ndarray], couples: str, units: Sequence[Sequence[int]] | None
) -> list[PrefixGroup]:
    """The groups of a loss that couples pairs, or the datums of each unit; else those with which most tokens are saved."""
    if units is not None:
        return unit_prefix_groups(sequences, units)
    return pair_prefix_groups(sequences) if couples == "pair" else find_prefix_groups(sequences)


def _common(left: np.ndarray, right: np.ndarray) -> int:
    """Number of tokens that both begin with; at least one token of each stays outside the prefix."""
    size = min(len(left), len(right)) - 1
    if size <= 0:
        return 0
    differ = left[:size] != right[:size]
    return int(differ.argmax()) if differ.any() else size


def lengths_read(lengths: Sequence[int] | np.ndarray, active: np.ndarray) -> np.ndarray:
    """For each sequence, how many of its tokens the outputs at `active` positions depend on; at least 1.

    lengths: of N sequences. active: [positions of all sequences] bool. No token of a decoder looks ahead, so tokens after
    the last active position need not be computed.
    """
    starts = np.cumsum(lengths, dtype=np.int64) - np.asarray(lengths, dtype=np.int64)
    after = np.where(active, np.arange(1, len(active) + 1), 0)
    last = np.maximum.reduceat(after, starts) if len(active) else np.zeros(0, dtype=np.int64)
    return np.maximum(last - starts, 1)


def _within_budget(group: PrefixGroup, lengths: Sequence[int], budget: float, width: int) -> list[list[int]]:
    """A group's datums in parts within the budget, each with the prefix once; `width` datums stay together."""
    parts: list[list[int]] = []
    used = 0
    for k in range(0, len(group.members), width):
        members = group.members[k : k + width]
        cost = sum(lengths[i] - group.prefix for i in members)
        if not parts or used + cost > budget:
            parts.append([])
            used = group.prefix
        parts[-1].extend(members)
        used += cost
    return parts
