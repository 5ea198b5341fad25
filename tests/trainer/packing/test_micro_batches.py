"""How a batch is cut: nothing lost, pairs whole, the budget kept, the largest micro-batch first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossbook.trainer.packing.micro_batches import plan_micro_batches

LENGTHS = st.lists(st.integers(1, 60), max_size=40)
BUDGETS = st.integers(1, 200)


def cost(batch: list[int], lengths: list[int], padded: bool) -> int:
    """Tokens that a micro-batch takes, its padding counted where there is any."""
    own = [lengths[i] for i in batch]
    return len(own) * max(own) if padded else sum(own)


@given(lengths=LENGTHS, tokens=BUDGETS, pairs=st.booleans(), padded=st.booleans())
def test_every_datum_is_in_exactly_one_micro_batch(lengths: list[int], tokens: int, pairs: bool, padded: bool) -> None:
    batches = plan_micro_batches(lengths, tokens=tokens, pairs=pairs, padded=padded)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(batches)


@given(lengths=LENGTHS, tokens=BUDGETS, pairs=st.booleans(), padded=st.booleans())
def test_a_micro_batch_keeps_within_the_budget_unless_it_is_a_single_datum_or_pair(
    lengths: list[int], tokens: int, pairs: bool, padded: bool
) -> None:
    for batch in plan_micro_batches(lengths, tokens=tokens, pairs=pairs, padded=padded):
        assert cost(batch, lengths, padded) <= tokens or len(batch) <= (2 if pairs else 1)


@given(pairs=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), max_size=20), tokens=BUDGETS)
def test_the_datums_of_a_pair_stay_together_and_in_order(pairs: list[tuple[int, int]], tokens: int) -> None:
    lengths = [length for pair in pairs for length in pair]
    for batch in plan_micro_batches(lengths, tokens=tokens, pairs=True, padded=True):
        assert len(batch) % 2 == 0
        assert all(batch[k] % 2 == 0 and batch[k + 1] == batch[k] + 1 for k in range(0, len(batch), 2))


@given(lengths=LENGTHS, tokens=BUDGETS, padded=st.booleans())
def test_the_longest_datums_come_first(lengths: list[int], tokens: int, padded: bool) -> None:
    batches = plan_micro_batches(lengths, tokens=tokens, pairs=False, padded=padded)
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)


@pytest.mark.parametrize(
    ("padded", "expected"),
    [
        pytest.param(False, [[1], [0, 2, 3]], id="packed: 4 + 3 + 1 tokens fit into 10"),
        pytest.param(True, [[1], [0, 2], [3]], id="padded: three rows of 4 would take 12"),
    ],
)
def test_padding_counts_only_where_there_is_padding(padded: bool, expected: list[list[int]]) -> None:
    assert plan_micro_batches([4, 9, 3, 1], tokens=10, pairs=False, padded=padded) == expected


def test_equal_lengths_keep_their_order_so_that_a_run_can_be_repeated() -> None:
    assert plan_micro_batches([5] * 6, tokens=10, pairs=False, padded=True) == [[0, 1], [2, 3], [4, 5]]


@given(lengths=LENGTHS, pairs=st.booleans(), padded=st.booleans())
def test_without_a_budget_all_datums_run_together(lengths: list[int], pairs: bool, padded: bool) -> None:
    assert len(plan_micro_batches(lengths, tokens=None, pairs=pairs, padded=padded)) == min(1, len(lengths))
