"""One packed row of several sequences: no padding, and a prefix that several sequences share is included only once.

    tokens        [a0 a1 a2 a3 | b0 b1 b2 | p0 p1 p2 p3 | c4 c5 | d4 d5 d6]
    position_ids  [ 0  1  2  3 |  0  1  2 |  0  1  2  3 |  4  5 |  4  5  6]

Here the sequences c and d share the four tokens of p. Linear layers see one row. Attention sees blocks: neighbours of
similar length (a and b; p), and the remainders of sequences that share a prefix (c and d after p).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .micro_batches import SHORTEST_PREFIX, PrefixGroup, find_prefix_groups

#: Sequences share a block while padding them to the longest adds at most this fraction of their tokens. Only attention is
#: padded; one block is one call of it.
PADDING_IN_ATTENTION = 0.25


@dataclass(frozen=True, eq=False)
class Block:
    """Neighbours in the row that share one call of attention.

    start       the row index of their first token
    lengths     tokens of each of the B sequences, L the longest
    prefix      (start, stop) in the row of the prefix that they share, or None
    padded      [B·L] int64 index into the block's tokens that pads them to [B, L]; None where all have length L
    unpadded    [tokens] int64 index into those B·L that drops the padding again
    """

    start: int
    lengths: tuple[int, ...]
    prefix: tuple[int, int] | None
    padded: np.ndarray | None
    unpadded: np.ndarray | None

    @property
    def tokens(self) -> int:
        """Number of tokens in the block."""
        return sum(self.lengths)


@dataclass(frozen=True, eq=False)
class PackedRow:
    """One row for the model, and where each sequence lies in it.

    tokens, position_ids  [T] int64
    blocks                in the row's order; together they cover it
    positions             for each sequence, [length] int64: the row index of each of its tokens
    """

    tokens: np.ndarray
    position_ids: np.ndarray
    blocks: tuple[Block, ...]
    positions: list[np.ndarray] = field(repr=False)


def pack_row(sequences: Sequence[np.ndarray], *, share: bool = True, shortest: int = SHORTEST_PREFIX) -> PackedRow:
    """Lay sequences [length] int64 into one row; with `share`, a prefix of `shortest` tokens or more is laid once."""
    groups = find_prefix_groups(sequences, shortest) if share else [PrefixGroup((i,), 0) for i in range(len(sequences))]
    groups = sorted(groups, key=lambda group: -(group.prefix or len(sequences[group.members[0]])))
    starts: dict[int, int] = {}  # of a group's prefix, or of its only sequence
    row = _Row()
    for group in groups:
        first = sequences[group.members[0]]
        starts[group.members[0]] = row.add(first[: group.prefix] if group.prefix else first, 0)
    blocks = _blocks(0, [len(tokens) for tokens in row.tokens], None)
    positions: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(sequences)
    for group in groups:
        start = starts[group.members[0]]
        if not group.prefix:
            positions[group.members[0]] = np.arange(start, start + len(sequences[group.members[0]]))
            continue
        members = sorted(group.members, key=lambda i: -len(sequences[i]))
        begin = row.length
        for i in members:
            rest = row.add(sequences[i][group.prefix :], group.prefix)
            positions[i] = np.concatenate([np.arange(start, start + group.prefix), np.arange(rest, row.length)])
        lengths = [len(sequences[i]) - group.prefix for i in members]
        blocks += _blocks(begin, lengths, (start, start + group.prefix))
    return PackedRow(np.concatenate(row.tokens), np.concatenate(row.position_ids), tuple(blocks), positions)


class _Row:
    """A packed row under construction."""

    def __init__(self) -> None:
        self.tokens: list[np.ndarray] = []
        self.position_ids: list[np.ndarray] = []
        self.length = 0

    def add(self, tokens: np.ndarray, first_position: int) -> int:
        """Append tokens; returns the row index of the first."""
        start = self.length
        self.tokens.append(tokens)
        self.position_ids.append(np.arange(first_position, first_position + len(tokens)))
        self.length += len(tokens)
        return start


def _blocks(start: int, lengths: Sequence[int], prefix: tuple[int, int] | None) -> list[Block]:
    """Cut neighbours, longest first, into blocks with little padding."""
    blocks: list[Block] = []
    begin = 0
    while begin < len(lengths):
        end, total = begin, 0
        while end < len(lengths):
            total += lengths[end]
            if lengths[begin] * (end + 1 - begin) > (1 + PADDING_IN_ATTENTION) * total:
                break
            end += 1
        blocks.append(_block(start, tuple(lengths[begin:end]), prefix))
        start += blocks[-1].tokens
        begin = end
    return blocks


def _block(start: int, lengths: tuple[int, ...], prefix: tuple[int, int] | None) -> Block:
    if len(set(lengths)) == 1:
        return Block(start, lengths, prefix, None, None)
    each = np.asarray(lengths)
    column = np.arange(each[0])
    real = column < each[:, None]  # [B, L]
    begins = (np.cumsum(each) - each)[:, None]
    # Padding follows every real token, and causal attention looks back only, so its content does not matter.
    padded = np.where(real, begins + column, 0).reshape(-1)
    return Block(start, lengths, prefix, padded, np.flatnonzero(real))
