"""Regularizers that are added to a loss over embeddings: embeddings that spread, and embeddings that are sparse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import relu

from .. import stats
from ..registry import register_loss
from ..spec.settings import Count, NonNegative
from ..stats import Stat
from .layout import blocks_in_one, normalized, on_diagonal, ranked_blocks


def _without_terms(settings: Mapping[str, Any]) -> str:
    return "" if settings["mean_weight"] or settings["second_moment_weight"] else "with both weights 0 nothing is left"


@register_loss(
    "gor",
    per="batch",
    couples="batch",
    source="Zhang et al. 2017, arXiv:1708.06320 eq. 5; second moment alone: Schechter Vera et al. 2025, arXiv:2509.20354",
    groups=blocks_in_one("gor", ranked_blocks),
    conflict=_without_terms,
    aliases=("global_orthogonal_regularization",),
    differs={
        "Sentence Transformers 6.2.0": "GlobalOrthogonalRegularizationLoss returns its two terms apart, which the trainer adds up; columns "
        "are whatever the data has, here queries, positives and num_hard_negatives blocks."
    },
    laws={"scale_invariance": {}, "rotation_invariance": {}, "grad_cache_is_full_batch": {}},
)
def gor(
    embeddings: Tensor,
    *,
    num_hard_negatives: Count = 0,
    mean_weight: NonNegative = 1.0,
    second_moment_weight: NonNegative = 1.0,
    aggregation: Literal["mean", "sum"] = "mean",
) -> tuple[Tensor, dict[str, Stat]]:
    """mean_weight m² + second_moment_weight max(0, s - 1/D), where m and s are the means of cos and cos² between texts of a block.

    embeddings   [(2 + H) B, D]  unitless  B queries, their B documents, then H blocks of B hard negatives
    returns      []              unitless  one loss per batch

    For vectors drawn evenly from a sphere both terms are 0: m is 0 and s is 1/D. Each block counts by itself, and the values
    of the 2 + H blocks are averaged or, with aggregation "sum", added; a block of one text has 0. `mean_similarity` and
    `second_moment` are m and s over all blocks.

    When to use: In a mixture with a retrieval loss, as in `get_loss("multiple_negatives_ranking") + 0.1 * get_loss("gor")`,
    where unrelated texts all look alike, or where embeddings are to survive quantization (EmbeddingGemma: aggregation "sum",
    mean_weight 0).
    """
    blocks = normalized(embeddings).unflatten(0, (2 + num_hard_negatives, -1)) if len(embeddings) else embeddings[None]
    cosines = blocks @ blocks.transpose(1, 2)  # [2 + H, B, B]
    cosines = cosines.masked_fill(on_diagonal(cosines[0]), 0)
    pairs = max(cosines.shape[1] * (cosines.shape[1] - 1), 1)
    first, second = cosines.sum((1, 2)) / pairs, cosines.square().sum((1, 2)) / pairs
    values = mean_weight * first.square() + second_moment_weight * relu(second - 1 / embeddings.shape[1])
    return values.mean() if aggregation == "mean" else values.sum(), {
        "mean_similarity": stats.mean(first),
        "second_moment": stats.mean(second),
    }


@register_loss(
    "flops",
    per="batch",
    couples="batch",
    source="Paria et al. 2020, arXiv:2004.05665 eq. 4; least_active: Geng et al. 2025, arXiv:2504.14839 section 3.2",
    groups=blocks_in_one("flops", ranked_blocks),
    conflict=lambda settings: (
        "" if settings["query_weight"] or settings["document_weight"] else "with both weights 0 nothing is left"
    ),
    differs={
        "Sentence Transformers 6.2.0": "FlopsLoss, within SpladeLoss: without the absolute value, which SPLADE's vectors do not need; its "
        "weights are those of the mixture here."
    },
    laws={"grad_cache_is_full_batch": {}},
)
def flops(
    embeddings: Tensor,
    *,
    num_hard_negatives: Count = 0,
    query_weight: NonNegative = 1.0,
    document_weight: NonNegative = 1.0,
    least_active: Count = 0,
) -> tuple[Tensor, dict[str, Stat]]:
    """query_weight Σ_j a_j² + document_weight Σ_j b_j², where a_j and b_j are mean_i |x_ij| of queries and of all documents.

    embeddings   [(2 + H) B, V]  unitless  B queries, their B documents, then H blocks of B hard negatives
    returns      []              unitless  one loss per batch

    Each sum estimates how many products a search by an inverted index takes for a query and a document, since coordinate
    j costs one where both are not 0. Vectors with at most least_active coordinates other than 0 count as 0: they are sparse
    enough. `query_active` and `document_active` are the mean numbers of such coordinates.

    When to use: In a mixture with a retrieval loss over SPLADE's vectors (pooling "splade"), of a weight around 1e-4 or
    less that grows over the first thousands of steps: too much at once, and all vectors become 0. Watch the two
    numbers of active coordinates: some tens for queries, some hundreds for documents are usual.
    """
    pairs = len(embeddings) // (2 + num_hard_negatives)
    total = embeddings.new_zeros(())
    metrics: dict[str, Stat] = {}
    for name, weight, rows in (
        ("query", query_weight, embeddings[:pairs]),
        ("document", document_weight, embeddings[pairs:]),
    ):
        active = (rows != 0).sum(1)
        kept = torch.where((active > least_active).unsqueeze(1), rows, 0)
        total = total + weight * (kept.abs().sum(0) / max(len(rows), 1)).square().sum()
        metrics[f"{name}_active"] = stats.mean(active)
    return total, metrics
