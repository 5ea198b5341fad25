"""How sequences lie in one packed row: no padding, a prefix that several begin with only once.

    tokens     [a0 a1 a2 a3 | b0 b1 b2 | p0 p1 p2 p3 | c4 c5 | d4 d5 d6]
    positions  [ 0  1  2  3 |  0  1  2 |  0  1  2  3 |  4  5 |  4  5  6]

Here the sequences c and d share the four tokens of p. Linear layers see one row; attention sees blocks: neighbours of
similar length (a and b; p), and the rest of sequences behind the prefix that they share (c and d behind p).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

#: Sequences share a row of a block while padding them to the longest adds at most this part of their tokens. Only
#: attention is padded, and a block is one call of it.
PADDING_IN_ATTENTION = 0.25

#: A prefix shorter than this is not worth a call of its own.
SHORTEST_PREFIX = 16


@dataclass(frozen=True)
class Family:
    """Sequences that begin with the same `prefix` tokens; a single one has a prefix of 0."""

    members: tuple[int, ...]
    prefix: int

    def tokens(self, lengths: Sequence[int]) -> int:
        """What the family costs: its prefix once, and the rest of each member."""
        return self.prefix + sum(lengths[i] - self.prefix for i in self.members)


@dataclass(frozen=True)
class Block:
    """Neighbours in the row whose attention is one call.

    start       the first of their tokens in the row
    lengths     tokens of each
    prefix      (start, stop) in the row of what they all see first, or None
    padded      [B·L] index into the block's tokens, which makes them B rows of the longest's L; None when all are equal
    unpadded    [tokens] index into those B·L places, the way back
    """

    start: int
    lengths: tuple[int, ...]
    prefix: tuple[int, int] | None
    padded: Tensor | None
    unpadded: Tensor | None

    @property
    def tokens(self) -> int:
        """How many tokens of the row it holds."""
        return sum(self.lengths)

    def to(self, device: torch.device) -> Block:
        """The same with its indices on a device."""
        if self.padded is None or self.unpadded is None:
            return self
        return replace(self, padded=self.padded.to(device), unpadded=self.unpadded.to(device))


@dataclass(frozen=True, eq=False)
class PackedRow:
    """One row for the model, and where each sequence's positions are in it.

    tokens, positions  [T] int64
    blocks             in the row's order, covering it
    places             for each sequence [length] int64: the row's index of each of its positions
    """

    tokens: np.ndarray
    positions: np.ndarray
    blocks: tuple[Block, ...]
    places: list[np.ndarray] = field(repr=False)


def pack_row(sequences: Sequence[np.ndarray], *, share: bool = True) -> PackedRow:
    """Lay sequences [length] int64 into one row; with `share`, a prefix that several begin with is laid once."""
    families = find_families(sequences) if share else [Family((i,), 0) for i in range(len(sequences))]
    heads = sorted(families, key=lambda f: -(f.prefix or len(sequences[f.members[0]])))
    starts: dict[int, int] = {}  # of a family's prefix, or of its only sequence
    row = _Row()
    for family in heads:
        first = sequences[family.members[0]]
        starts[family.members[0]] = row.add(first[: family.prefix] if family.prefix else first, 0)
    blocks = _blocks(0, [len(piece) for piece in row.pieces], None)
    places: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(sequences)
    for family in heads:
        start = starts[family.members[0]]
        if not family.prefix:
            places[family.members[0]] = np.arange(start, start + len(sequences[family.members[0]]))
            continue
        members = sorted(family.members, key=lambda i: -len(sequences[i]))
        begin = row.length
        for i in members:
            own = row.add(sequences[i][family.prefix :], family.prefix)
            behind = np.arange(own, row.length)
            places[i] = np.concatenate([np.arange(start, start + family.prefix), behind])
        lengths = [len(sequences[i]) - family.prefix for i in members]
        blocks += _blocks(begin, lengths, (start, start + family.prefix))
    return PackedRow(np.concatenate(row.pieces), np.concatenate(row.positions), tuple(blocks), places)


def find_families(sequences: Sequence[np.ndarray]) -> list[Family]:
    """Sequences grouped by the beginnings they share, so that few tokens are left to compute; O(tokens + n log n).

    In the sequences' dictionary order those that share most are neighbours. A family grows along it as long as that
    saves tokens: a common system prompt does not tear apart groups that share a longer prompt.
    """
    keys = [sequence.astype(">i8").tobytes() for sequence in sequences]  # big-endian: bytes compare as the tokens do
    order = sorted(range(len(sequences)), key=keys.__getitem__)
    families: list[Family] = []
    members, prefix = order[:1], 0
    for previous, i in itertools.pairwise(order):
        common = _common(sequences[previous], sequences[i])
        grown = common if len(members) == 1 else min(prefix, common)
        if grown >= SHORTEST_PREFIX and grown * len(members) >= prefix * (len(members) - 1):
            members, prefix = [*members, i], grown
            continue
        families.append(Family(tuple(members), prefix))
        members, prefix = [i], 0
    if members:
        families.append(Family(tuple(members), prefix))
    return families


def pair_families(sequences: Sequence[np.ndarray]) -> list[Family]:
    """Datums 2i and 2i+1 with the prefix that both begin with, which is 0 if it is not worth sharing."""
    families = []
    for i in range(0, len(sequences) - 1, 2):
        common = _common(sequences[i], sequences[i + 1])
        families.append(Family((i, i + 1), common if common >= SHORTEST_PREFIX else 0))
    return families


def _common(left: np.ndarray, right: np.ndarray) -> int:
    """Tokens that both begin with, so that at least one of each is left over."""
    size = min(len(left), len(right)) - 1
    if size <= 0:
        return 0
    differ = left[:size] != right[:size]
    return int(differ.argmax()) if differ.any() else size


class _Row:
    """A row while it grows."""

    def __init__(self) -> None:
        self.pieces: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.length = 0

    def add(self, tokens: np.ndarray, first_position: int) -> int:
        """Append tokens; returns where they start."""
        start = self.length
        self.pieces.append(tokens)
        self.positions.append(np.arange(first_position, first_position + len(tokens)))
        self.length += len(tokens)
        return start


def _blocks(start: int, lengths: Sequence[int], prefix: tuple[int, int] | None) -> list[Block]:
    """Cut neighbours, longest first, into blocks that waste little on padding."""
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
    # What stands in the padding is never seen: it is behind every real token, and causal attention looks back only.
    padded = np.where(real, begins + column, 0).reshape(-1)
    return Block(start, lengths, prefix, torch.from_numpy(padded), torch.from_numpy(np.flatnonzero(real)))
