"""Shared by embedding losses: the layout of datums in blocks, cosines, and retrieval metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...datums.errors import ShapeError
from .. import stats
from ..spec.groups import Grouping, Groups
from ..stats import Stat

#: Shorter vectors are divided by this instead of by their length, so a zero vector has cosine 0 with all others.
SHORTEST = 1e-12

Distance = Literal["euclidean", "cosine"]


def normalized(embeddings: Tensor) -> Tensor:
    """Vectors [..., D] divided by their lengths."""
    return normalize(embeddings, dim=-1, eps=SHORTEST)


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """[P] cosines of the rows of two [P, D]."""
    return (normalized(first) * normalized(second)).sum(-1)


def distance_between(first: Tensor, second: Tensor, distance: Distance) -> Tensor:
    """[P] distances between the rows of two [P, D], euclidean or 1 - cosine. No gradient between equal vectors."""
    return torch.linalg.vector_norm(first - second, dim=-1) if distance == "euclidean" else 1 - cosine(first, second)


def block_size(name: str, datums: int, blocks: Sequence[str]) -> int:
    """B, where datums are laid out as len(blocks) blocks of B. Raises ShapeError when they cannot be."""
    size, left_over = divmod(datums, len(blocks))
    if left_over:
        raise ShapeError(
            f"{name} takes B {', then B '.join(blocks)}, so the number of datums must be a multiple of {len(blocks)}; got "
            f"{datums} datums"
        )
    return size


def in_blocks(name: str, blocks: Callable[[Any], Sequence[str]], *, per_block: int = 1) -> Groups:
    """`groups` of a loss over blocks of B datums that returns per_block * B values.

    blocks: from the configuration to the names of the blocks, for messages. Datum i of one block belongs with datum i of
    every other.
    """

    def groups(datums: int, config: Any, inputs: Any) -> Grouping:
        size = block_size(name, datums, blocks(config))
        return Grouping([list(range(i, datums, size)) for i in range(size)], per_block * size)

    return groups


def pairs_in_one(name: str) -> Groups:
    """`groups` of a loss that returns one value for all pairs 2i, 2i+1 of a batch."""

    def groups(datums: int, config: Any, inputs: Any) -> Grouping:
        if datums % 2:
            raise ShapeError(f"{name} takes pairs, datums 2i and 2i+1, but there are {datums} datums")
        return Grouping([[i, i + 1] for i in range(0, datums, 2)])

    return groups


def same_document(document_id: Tensor | None, pairs: int, like: Tensor) -> Tensor:
    """[B, C] bool, in the shape of `like`: other candidates with the id of a query's document, which are not negatives.

    document_id: [B + C], of the queries (their documents' ids) and of the candidates; None if all are distinct.
    """
    if document_id is None:
        return torch.zeros_like(like, dtype=torch.bool)
    return (document_id[:pairs, None] == document_id[None, pairs:]) & ~on_diagonal(like)


def on_diagonal(like: Tensor) -> Tensor:
    """[R, C] bool, in the shape of `like`: True on the diagonal."""
    return torch.eye(*like.shape, dtype=torch.bool, device=like.device)


def retrieval(cosines: Tensor, partner: Tensor, negative: Tensor) -> dict[str, Stat]:
    """Metrics of a search among the candidates. All [R, C]: cosines, each row's partner, and its negatives.

    `in_batch_recall_at_1`: share of rows whose partner is nearer than every negative; a tie is a miss, so it is 0 for
    collapsed embeddings. `positive_similarity`, `negative_similarity`: mean cosines, equal when embeddings collapse.
    """
    cosines = cosines.detach()
    own = torch.where(partner, cosines, 0).sum(1, keepdim=True)
    is_found = ~(negative & (cosines >= own)).any(1)
    return {
        "in_batch_recall_at_1": stats.mean(is_found),
        "positive_similarity": stats.mean(cosines, partner),
        "negative_similarity": stats.mean(cosines, negative),
    }
