"""How a call is dealt to ranks: nothing lost, pairs whole, as many micro-batches for each rank, and about as many tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from lossbook.trainer.packing.micro_batches import (
    PrefixGroup,
    find_prefix_groups,
    pair_prefix_groups,
    plan_micro_batches,
)
from lossbook.trainer.packing.shares import plan_shares

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)
BUDGETS = st.one_of(st.none(), st.integers(1, 200))
RANKS = st.integers(1, 5)


def cost(cut: list[int], lengths: list[int], padded: bool) -> int:
    """Tokens that a micro-batch takes, its padding counted where there is any; none for a rank without anything to do."""
    own = [lengths[i] for i in cut]
    return len(own) * max(own, default=0) if padded else sum(own)


def families(draw: Callable[..., Any], *, pairs: bool) -> list[np.ndarray]:
    """Sequences of which some begin with the same tokens."""
    heads = [np.full(draw(st.integers(16, 40)), head) for head in range(draw(st.integers(1, 4)))]
    sequences: list[np.ndarray] = []
    for tail in range(draw(st.integers(1, 12))):
        head = heads[draw(st.integers(0, len(heads) - 1))]
        for _ in range(2 if pairs else 1):
            own = np.full(draw(st.integers(1, 20)), 100 + len(sequences) + 100 * tail)
            sequences.append(np.concatenate([head, own]))
    return sequences


@given(lengths=LENGTHS, tokens=BUDGETS, ranks=RANKS, pairs=st.booleans(), padded=st.booleans())
def test_every_datum_has_one_place_and_every_rank_as_many_micro_batches(
    lengths: list[int], tokens: int | None, ranks: int, pairs: bool, padded: bool
) -> None:
    shares = plan_shares(lengths, ranks=ranks, tokens=tokens, pairs=pairs, padded=padded)
    assert len(shares) == ranks
    assert sorted(i for cuts in shares for cut in cuts for i in cut) == list(range(len(lengths)))
    alone = plan_micro_batches(lengths, tokens=tokens, pairs=pairs, padded=padded)
    assert {len(cuts) for cuts in shares} == {-(-len(alone) // ranks)}, "as few as the budget allows"


@given(lengths=LENGTHS, tokens=BUDGETS, pairs=st.booleans(), padded=st.booleans())
def test_one_rank_has_the_plan_of_a_process_alone(
    lengths: list[int], tokens: int | None, pairs: bool, padded: bool
) -> None:
    alone = plan_micro_batches(lengths, tokens=tokens, pairs=pairs, padded=padded)
    assert plan_shares(lengths, ranks=1, tokens=tokens, pairs=pairs, padded=padded) == [alone]


@given(lengths=LENGTHS, tokens=st.integers(1, 200), ranks=RANKS, pairs=st.booleans(), padded=st.booleans())
def test_no_rank_exceeds_the_budget_but_for_a_single_datum_or_pair(
    lengths: list[int], tokens: int, ranks: int, pairs: bool, padded: bool
) -> None:
    for cuts in plan_shares(lengths, ranks=ranks, tokens=tokens, pairs=pairs, padded=padded):
        assert all(cost(cut, lengths, padded) <= tokens or len(cut) <= (2 if pairs else 1) for cut in cuts)


@given(lengths=LENGTHS, tokens=BUDGETS, ranks=st.integers(2, 5), pairs=st.booleans())
@example(lengths=[20] * 8, tokens=None, ranks=4, pairs=False)
def test_no_micro_batch_is_larger_than_an_equal_share_and_one_datum_or_pair(
    lengths: list[int], tokens: int | None, ranks: int, pairs: bool
) -> None:
    shares = plan_shares(lengths, ranks=ranks, tokens=tokens, pairs=pairs, padded=False)
    units = [sum(lengths[i : i + 2]) for i in range(0, len(lengths), 2)] if pairs else lengths
    equal = sum(lengths) / (ranks * len(shares[0]))
    assert max(cost(cut, lengths, False) for cuts in shares for cut in cuts) <= equal + max(units)


@given(lengths=LENGTHS, tokens=BUDGETS, ranks=st.integers(2, 5), padded=st.booleans())
def test_micro_batches_that_run_at_one_time_are_neighbours_in_size(
    lengths: list[int], tokens: int | None, ranks: int, padded: bool
) -> None:
    shares = plan_shares(lengths, ranks=ranks, tokens=tokens, pairs=False, padded=padded)
    in_turn = [cost(cut, lengths, padded) for round_ in zip(*shares, strict=True) for cut in round_]
    assert in_turn == sorted(in_turn, reverse=True)


@given(lengths=LENGTHS.filter(lambda lengths: len(lengths) % 2 == 0), tokens=BUDGETS, ranks=RANKS, padded=st.booleans())
def test_both_datums_of_a_pair_are_on_one_rank_in_order(
    lengths: list[int], tokens: int | None, ranks: int, padded: bool
) -> None:
    for cuts in plan_shares(lengths, ranks=ranks, tokens=tokens, pairs=True, padded=padded):
        for cut in cuts:
            assert cut[1::2] == [i + 1 for i in cut[::2]]
            assert all(i % 2 == 0 for i in cut[::2])


@given(st.data(), st.booleans())
def test_sequences_that_share_a_prefix_are_divided_only_where_together_they_exceed_every_micro_batch(
    data: st.DataObject, pairs: bool
) -> None:
    sequences = families(data.draw, pairs=pairs)
    lengths = [len(sequence) for sequence in sequences]
    groups = (pair_prefix_groups if pairs else find_prefix_groups)(sequences)
    ranks = data.draw(RANKS)
    shares = plan_shares(lengths, ranks=ranks, tokens=None, pairs=pairs, padded=False, prefix_groups=groups)
    cuts = [cut for own in shares for cut in own if cut]
    assert sorted(i for cut in cuts for i in cut) == list(range(len(lengths)))
    parts = [[PrefixGroup(tuple(set(cut) & set(g.members)), g.prefix) for g in groups] for cut in cuts]
    computed = [sum(part.tokens(lengths) for part in held if part.members) for held in parts]
    largest = max((n for n, cut in zip(computed, cuts, strict=True) if len(cut) > (2 if pairs else 1)), default=0)
    for group in groups:
        is_divided = sum(bool(set(cut) & set(group.members)) for cut in cuts) > 1
        assert not is_divided or (group.tokens(lengths) > largest and not pairs)


def test_four_datums_of_one_length_are_one_for_each_of_four_ranks() -> None:
    assert plan_shares([9, 9, 9, 9], ranks=4, tokens=100, pairs=False, padded=False) == [[[0]], [[1]], [[2]], [[3]]]


def test_a_rank_for_which_there_is_no_datum_has_micro_batches_of_nothing() -> None:
    assert plan_shares([5, 7], ranks=3, tokens=100, pairs=False, padded=False) == [[[1]], [[0]], [[]]]


def test_a_group_that_is_larger_than_an_equal_share_is_divided_and_its_prefix_computed_on_each_rank() -> None:
    sequences = [np.concatenate([np.zeros(20, np.int64), np.full(5, i)]) for i in range(1, 5)]
    groups = find_prefix_groups(sequences)
    shares = plan_shares([25] * 4, ranks=2, tokens=None, pairs=False, padded=False, prefix_groups=groups)
    assert sorted(len(cut) for cuts in shares for cut in cuts) == [2, 2]
