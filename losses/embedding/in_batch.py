"""Contrastive losses in which the other datums of the batch are the negatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...datums.errors import ShapeError
from .. import stats
from ..config import Count, Positive
from ..registry import register_loss
from ..stats import Stat


def _queries_and_documents(datums: int, config: Any, inputs: Mapping[str, Any]) -> int:
    return 2 * _pairs(datums, config.num_extra_negatives)


def _query_with_document(datums: int, config: Any) -> list[list[int]]:
    pairs = _pairs(datums, config.num_extra_negatives)
    return [[i, pairs + i] for i in range(pairs)]


def _pairs(datums: int, extra_negatives: int) -> int:
    pairs, left_over = divmod(datums - extra_negatives, 2)
    if pairs < 0 or left_over:
        raise ShapeError(
            f"info_nce takes B queries, their B documents and {extra_negatives} extra negatives, which {datums} datums "
            "cannot be. Set num_extra_negatives to the number of documents without a query"
        )
    return pairs


@register_loss(
    "info_nce",
    per="datum",
    couples="batch",
    reduction="mean",
    source="van den Oord et al. 2018, arXiv:1807.03748 eq. 4; both directions: Radford et al. 2021, arXiv:2103.00020 fig. 3",
    units=_queries_and_documents,
    partners=_query_with_document,
)
def info_nce(
    embeddings: Tensor, *, temperature: Positive = 0.02, num_extra_negatives: Count = 0
) -> tuple[Tensor, dict[str, Stat]]:
    """Cross-entropy of finding one's partner among all candidates, by cosine similarity / temperature.

    embeddings   [2B + E, D]  unitless: B queries, their B documents in the same order, E extra negative documents
    returns      [2B]         nats: query i against all B + E documents, then document i against all B queries

    The mean over 2B values is the mean of both directions' means. Extra negatives serve the queries only. A document
    that stands twice in a batch is its twin's false negative: keep documents distinct.
    """
    pairs = _pairs(len(embeddings), num_extra_negatives)
    directions = normalize(embeddings, dim=-1, eps=1e-12)
    queries, documents = directions[:pairs], directions[pairs:]
    similarity = queries @ documents.T / temperature  # [B, B + E]
    partner = similarity.diagonal()
    to_documents = similarity.logsumexp(1) - partner
    to_queries = similarity[:, :pairs].logsumexp(0) - partner
    found = similarity.detach().argmax(1) if pairs else similarity.new_zeros(0)
    recall = found == torch.arange(pairs).to(found)
    return torch.cat([to_documents, to_queries]), {
        "in_batch_recall_at_1": stats.mean(recall),
        "query_to_document": stats.mean(to_documents),
        "document_to_query": stats.mean(to_queries),
    }
