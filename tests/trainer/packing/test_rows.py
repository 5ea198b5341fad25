"""A packed row: every token is in it where its sequence says, and a shared prefix only once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossbook.trainer.packing.micro_batches import (
    SHORTEST_PREFIX,
    PrefixGroup,
    find_prefix_groups,
    pair_prefix_groups,
    plan_micro_batches,
)
from lossbook.trainer.packing.rows import PADDING_IN_ATTENTION, pack_row


@st.composite
def batches(draw: st.DrawFn) -> list[np.ndarray]:
    """Sequences, some of which begin with one of two long prompts (of which one begins with the other's beginning)."""
    prompts = [[], list(range(30)), [*range(20), 99, 98, 97, 96]]
    shapes = draw(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 5), max_size=9)), max_size=12))
    return [np.array([*prompts[prompt], *own] or [7]) for prompt, own in shapes]


@given(sequences=batches(), share=st.booleans())
def test_each_sequence_lies_at_its_positions_with_its_own_position_ids(
    sequences: list[np.ndarray], share: bool
) -> None:
    if not sequences:
        return
    row = pack_row(sequences, share=share)
    for sequence, positions in zip(sequences, row.positions, strict=True):
        assert row.tokens[positions].tolist() == sequence.tolist()
        assert row.position_ids[positions].tolist() == list(range(len(sequence)))


@given(sequences=batches())
def test_every_token_of_the_row_belongs_to_a_sequence_and_to_one_block(sequences: list[np.ndarray]) -> None:
    if not sequences:
        return
    row = pack_row(sequences)
    assert set(np.concatenate(row.positions).tolist()) == set(range(len(row.tokens)))
    stop = 0
    for block in row.blocks:
        assert block.start == stop
        stop += block.tokens
        assert block.prefix is None or block.prefix[1] <= block.start
        assert max(block.lengths) * len(block.lengths) <= (1 + PADDING_IN_ATTENTION) * block.tokens
    assert stop == len(row.tokens)


@given(sequences=batches())
def test_padding_a_block_and_back_changes_nothing(sequences: list[np.ndarray]) -> None:
    for block in pack_row(sequences).blocks if sequences else ():
        if block.padded is None or block.unpadded is None:
            assert len(set(block.lengths)) == 1
            continue
        tokens = torch.arange(block.tokens)
        rows = tokens[block.padded].view(len(block.lengths), max(block.lengths))
        assert rows.view(-1)[block.unpadded].tolist() == tokens.tolist()
        begins = np.cumsum(block.lengths) - block.lengths
        assert rows[:, 0].tolist() == begins.tolist()


@given(sequences=batches())
def test_prefix_groups_hold_each_sequence_once_and_share_their_prefix(sequences: list[np.ndarray]) -> None:
    groups = find_prefix_groups(sequences)
    assert sorted(i for group in groups for i in group.members) == list(range(len(sequences)))
    for group in groups:
        assert group.prefix == 0 if len(group.members) == 1 else group.prefix >= SHORTEST_PREFIX
        shared = {tuple(sequences[i][: group.prefix].tolist()) for i in group.members}
        assert len(shared) == 1
        assert all(len(sequences[i]) > group.prefix for i in group.members), "each has a token of its own"


def test_a_common_system_prompt_does_not_break_up_groups_that_share_more() -> None:
    system = list(range(20))
    first, second = [*system, *[50] * 40], [*system, *[60] * 40]
    sequences = [np.array([*prompt, 70 + k]) for k in range(4) for prompt in (first, second)]
    assert sorted((group.members, group.prefix) for group in find_prefix_groups(sequences)) == [
        ((0, 2, 4, 6), 60),
        ((1, 3, 5, 7), 60),
    ]


def test_a_short_beginning_is_not_worth_sharing() -> None:
    sequences = [np.array([*range(SHORTEST_PREFIX - 1), 50 + k]) for k in range(2)]
    assert [group.prefix for group in find_prefix_groups(sequences)] == [0, 0]
    assert pair_prefix_groups(sequences) == [PrefixGroup((0, 1), 0)]


def test_a_pair_shares_its_prompt() -> None:
    prompt = list(range(20))
    sequences = [np.array([*prompt, *answer]) for answer in ([31, 32], [41], [31], [51, 52, 53])]
    assert pair_prefix_groups(sequences) == [PrefixGroup((0, 1), 20), PrefixGroup((2, 3), 20)]


@given(sequences=batches(), tokens=st.integers(1, 120), pairs=st.booleans())
def test_micro_batches_of_prefix_groups_keep_the_budget_that_counts_a_prefix_once(
    sequences: list[np.ndarray], tokens: int, pairs: bool
) -> None:
    if pairs and len(sequences) % 2:
        sequences = sequences[:-1]
    groups = pair_prefix_groups(sequences) if pairs else find_prefix_groups(sequences)
    lengths = [len(sequence) for sequence in sequences]
    cuts = plan_micro_batches(lengths, tokens=tokens, pairs=pairs, padded=False, prefix_groups=groups)
    assert sorted(i for cut in cuts for i in cut) == list(range(len(sequences)))
    for cut in cuts:
        row = pack_row([sequences[i] for i in cut])
        assert len(row.tokens) <= tokens or len(cut) <= (2 if pairs else 1)
        if pairs:
            assert all(cut[k + 1] == cut[k] + 1 and cut[k] % 2 == 0 for k in range(0, len(cut), 2))


def test_a_prefix_group_beyond_the_budget_is_cut_and_each_part_holds_the_prefix() -> None:
    group = PrefixGroup((0, 1, 2, 3), 50)
    cuts = plan_micro_batches([60] * 4, tokens=70, pairs=False, padded=False, prefix_groups=[group])
    assert sorted(map(sorted, cuts)) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("count", [1, 3])
def test_sequences_of_one_token_pack(count: int) -> None:
    row = pack_row([np.array([5])] * count)
    assert row.tokens.tolist() == [5] * count
    assert row.position_ids.tolist() == [0] * count
