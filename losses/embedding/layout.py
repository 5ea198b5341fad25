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
#: A cosine, or the dot product of the vectors as they are.
Similarity = Literal["cosine", "dot"]


def normalized(embeddings: Tensor) -> Tensor:
    """Vectors [..., D] divided by their lengths."""
    return normalize(embeddings, dim=-1, eps=SHORTEST)


def compared_by(similarity: Similarity, embeddings: Tensor) -> Tensor:
    """Vectors [..., D] whose dot products are the similarities."""
    return normalized(embeddings) if similarity == "cosine" else embeddings


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """[P] cosines of the rows of two [P, D]."""
    return (normalized(first) * normalized(second)).sum(-1)


def distance_between(first: Tensor, second: Tensor, distance: Distance) -> Tensor:
    """[P] distances between the rows of two [P, D], euclidean or 1 - cosine. No gradient between equal vectors."""
    return torch.linalg.vector_norm(first - second, dim=-1) if distance == "euclidean" else 1 - cosine(first, second)


def all_distances(vectors: Tensor, distance: Distance) -> Tensor:
    """[N, N] distances between all rows of [N, D], euclidean or 1 - cosine. No gradient between equal vectors."""
    if distance == "cosine":
        directions = normalized(vectors)
        return 1 - directions @ directions.T
    # products of all pairs at once would lose the digits of small distances
    return torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")


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


def ranked_blocks(config: Any) -> Sequence[str]:
    """The blocks of B queries, B positives and `num_hard_negatives` times B negatives."""
    return ("queries", "positives", *(f"negatives {k + 1}" for k in range(config.num_hard_negatives)))


def blocks_in_one(name: str, blocks: Callable[[Any], Sequence[str]]) -> Groups:
    """`groups` of a loss that returns one value for all blocks of a batch."""

    def groups(datums: int, config: Any, inputs: Any) -> Grouping:
        size = block_size(name, datums, blocks(config))
        return Grouping([list(range(i, datums, size)) for i in range(size)])

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
    return share_an_id(document_id[:pairs], document_id[pairs:], like) & ~on_diagonal(like)


def share_an_id(first: Tensor | None, second: Tensor | None, like: Tensor) -> Tensor:
    """[R, C] bool, in the shape of `like`: which of two rows of ids [R], [C] are equal; none without ids."""
    if first is None or second is None:
        return torch.zeros_like(like, dtype=torch.bool)
    return first[:, None] == second[None, :]


def of_own_row(like: Tensor) -> Tensor:
    """[B, C] bool, in the shape of `like`: documents of a row's own query, where C is blocks of B documents."""
    numbers = torch.arange(like.shape[1], device=like.device)
    return numbers[None, :] % max(len(like), 1) == numbers[: len(like), None]


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
