"""What embedding losses share: how datums are laid out in blocks, cosines, and what to report of a retrieval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...datums.errors import ShapeError
from .. import stats
from ..spec.spec import Partners, Units
from ..stats import Stat

#: Vectors shorter than this are not stretched to length 1; a zero vector has cosine 0 with all others.
SHORTEST = 1e-12

Distance = Literal["euclidean", "cosine"]


def unit(embeddings: Tensor) -> Tensor:
    """Vectors [..., D] divided by their lengths."""
    return normalize(embeddings, dim=-1, eps=SHORTEST)


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """[P, D] twice to [P]: cosines row by row."""
    return (unit(first) * unit(second)).sum(-1)


def distance_between(first: Tensor, second: Tensor, distance: Distance) -> Tensor:
    """[P, D] twice to [P]: lengths of the differences, or 1 - cosine. No gradient between equal vectors."""
    return torch.linalg.vector_norm(first - second, dim=-1) if distance == "euclidean" else 1 - cosine(first, second)


def block_size(name: str, datums: int, blocks: Sequence[str]) -> int:
    """B of datums laid out as len(blocks) blocks of B. Raises ShapeError naming the layout when they cannot be."""
    size, left_over = divmod(datums, len(blocks))
    if left_over:
        raise ShapeError(
            f"{name} takes B {', then B '.join(blocks)}, so their number is a multiple of {len(blocks)}, which {datums} "
            "datums are not"
        )
    return size


def in_blocks(name: str, blocks: Callable[[Any], Sequence[str]], *, per_block: int = 1) -> tuple[Units, Partners]:
    """`units` and `partners` of a loss over blocks of B datums that returns per_block * B values.

    blocks: from the configuration to what the blocks hold, as messages call it. Datum i of one block belongs to datum i of
    each other.
    """

    def units(datums: int, config: Any, inputs: Mapping[str, Any]) -> int:
        return per_block * block_size(name, datums, blocks(config))

    def partners(datums: int, config: Any) -> list[list[int]]:
        size = block_size(name, datums, blocks(config))
        return [list(range(i, datums, size)) for i in range(size)]

    return units, partners


def pairs_in_one(name: str) -> tuple[Units, Partners]:
    """`units` and `partners` of a loss that returns one value for all pairs 2i, 2i+1 of a batch."""

    def units(datums: int, config: Any, inputs: Mapping[str, Any]) -> int:
        if datums % 2:
            raise ShapeError(f"{name} takes pairs, datums 2i and 2i+1, but there are {datums} datums")
        return 1

    def partners(datums: int, config: Any) -> list[list[int]]:
        return [[i, i + 1] for i in range(0, datums, 2)]

    return units, partners


def same_document(document_id: Tensor | None, pairs: int, like: Tensor) -> Tensor:
    """[B, C] bool, in the shape of `like`: candidates that are a query's document once more, so no negatives of it.

    document_id: [B + C], of the queries (their documents' ids) and of the candidates; None: all are distinct.
    """
    if document_id is None:
        return torch.zeros_like(like, dtype=torch.bool)
    return (document_id[:pairs, None] == document_id[None, pairs:]) & ~on_diagonal(like)


def on_diagonal(like: Tensor) -> Tensor:
    """[R, C] bool, in the shape of `like`: where row and column are the same."""
    return torch.eye(*like.shape, dtype=torch.bool, device=like.device)


def retrieval(cosines: Tensor, partner: Tensor, negative: Tensor) -> dict[str, Stat]:
    """What a search among the candidates finds. All [R, C]: cosines, which one is a row's partner, which are negatives.

    `in_batch_recall_at_1`: rows whose partner is nearer than every negative; a tie is a miss, so it is 0 of collapsed
    embeddings. `positive_similarity` and `negative_similarity`: mean cosines; they meet when embeddings collapse.
    """
    cosines = cosines.detach()
    own = torch.where(partner, cosines, 0).sum(1, keepdim=True)
    is_found = ~(negative & (cosines >= own)).any(1)
    return {
        "in_batch_recall_at_1": stats.mean(is_found),
        "positive_similarity": mean_where(partner, cosines),
        "negative_similarity": mean_where(negative, cosines),
    }


def mean_where(chosen: Tensor, values: Tensor) -> Stat:
    """The mean over some of the elements; where none is chosen, a mean of nothing."""
    kept = torch.where(chosen, values.detach(), 0).sum(dtype=torch.float64)
    return Stat("mean", kept, chosen.sum(dtype=torch.float64))
