"""Cutting a call's datums into micro-batches by a budget of tokens, never between what a loss must see together."""

from __future__ import annotations

from collections.abc import Sequence


def plan_micro_batches(lengths: Sequence[int], *, tokens: int, pairs: bool, padded: bool) -> list[list[int]]:
    """Datum indices of each micro-batch: similar lengths together, at most `tokens` tokens each.

    lengths: tokens of each datum. pairs: keep datums 2i and 2i+1 together, in this order. padded: count what padding to
    the longest of the micro-batch costs, not only the tokens themselves.

    Longest first, so that the largest micro-batch comes first and memory that suffices for it suffices for all. A
    single unit longer than the budget gets a micro-batch of its own. Takes O(n log n) in datums.
    """
    width = 2 if pairs else 1
    units = [list(range(i, min(i + width, len(lengths)))) for i in range(0, len(lengths), width)]
    longest = [max((lengths[i] for i in unit), default=0) for unit in units]
    order = sorted(range(len(units)), key=lambda u: -longest[u])
    batches: list[list[int]] = []
    used = row_length = 0
    for u in order:
        unit = units[u]
        cost = len(unit) * row_length if padded and batches else sum(lengths[i] for i in unit)
        if not batches or used + cost > tokens:
            batches.append([])
            row_length = longest[u]
            used = 0
            cost = len(unit) * row_length if padded else sum(lengths[i] for i in unit)
        batches[-1].extend(unit)
        used += cost
    return batches
