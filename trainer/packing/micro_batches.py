"""Cutting a call's datums into micro-batches by a budget of tokens, never between what a loss must see together."""

from __future__ import annotations

from collections.abc import Sequence

from .rows import Family


def plan_micro_batches(
    lengths: Sequence[int], *, tokens: int, pairs: bool, padded: bool, families: Sequence[Family] = ()
) -> list[list[int]]:
    """Datum indices of each micro-batch: similar lengths together, at most `tokens` tokens each.

    lengths: tokens of each datum. pairs: keep datums 2i and 2i+1 together, in this order. padded: count what padding to
    the longest of the micro-batch costs, not only the tokens themselves. families: datums that share a prefix, which a
    packed row holds once; each datum in one of them. They stay together unless they exceed the budget.

    Longest first, so that the largest micro-batch comes first and memory that suffices for it suffices for all. A
    single unit longer than the budget gets a micro-batch of its own. Takes O(n log n) in datums.
    """
    width = 2 if pairs else 1
    units = [list(range(i, min(i + width, len(lengths)))) for i in range(0, len(lengths), width)]
    if padded or not families:
        costs = [sum(lengths[i] for i in unit) for unit in units]
    else:
        units = [unit for family in families for unit in _within(family, lengths, tokens, width)]
        prefixes = {i: family.prefix for family in families for i in family.members}
        costs = [Family(tuple(unit), prefixes[unit[0]]).tokens(lengths) for unit in units]
    longest = [max((lengths[i] for i in unit), default=0) for unit in units]
    order = sorted(range(len(units)), key=lambda u: -(longest[u] if padded or not families else costs[u]))
    batches: list[list[int]] = []
    used = row_length = 0
    for u in order:
        unit = units[u]
        cost = len(unit) * row_length if padded and batches else costs[u]
        if not batches or used + cost > tokens:
            batches.append([])
            row_length = longest[u]
            used = 0
            cost = len(unit) * row_length if padded else costs[u]
        batches[-1].extend(unit)
        used += cost
    return batches


def _within(family: Family, lengths: Sequence[int], tokens: int, width: int) -> list[list[int]]:
    """A family's datums in parts that keep within the budget, each with the prefix once; `width` datums stay together."""
    parts: list[list[int]] = []
    used = 0
    for k in range(0, len(family.members), width):
        members = family.members[k : k + width]
        cost = sum(lengths[i] - family.prefix for i in members)
        if not parts or used + cost > tokens:
            parts.append([])
            used = family.prefix
        parts[-1].extend(members)
        used += cost
    return parts
