"""Contrastive losses in which the other datums of the batch are the negatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ...datums.errors import ShapeError
from .. import stats
from ..registry import register_loss
from ..spec.settings import Count, Positive
from ..spec.spec import PerDatum
from ..stats import Stat
from .layout import in_blocks, on_diagonal, retrieval, same_document, unit

#: Laws that losses over cosines keep.
COSINE_LAWS: Mapping[str, Mapping[str, Any]] = {
    "scale_invariance": {},
    "rotation_invariance": {},
    "grad_cache_is_full_batch": {},
}


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
    aliases=("contrastive",),
    differs={
        "Fireworks": "The same formula; its temperature has no default, and duplicate documents are never masked.",
        "Sentence Transformers": "MultipleNegativesRankingLoss with both directions per_direction; scale 20 is temperature "
        "0.05, and duplicate documents are never masked.",
    },
    claims=COSINE_LAWS,
)
def info_nce(
    embeddings: Tensor,
    document_id: PerDatum | None = None,
    *,
    temperature: Positive = 0.02,
    num_extra_negatives: Count = 0,
) -> tuple[Tensor, dict[str, Stat]]:
    """Cross-entropy of finding one's partner among all candidates, by cosine similarity / temperature.

    embeddings    [2B + E, D]  unitless  B queries, their B documents in the same order, E extra negative documents
    document_id   [2B + E]     unitless  optional integers: a document's id; a query carries that of its document
    returns       [2B]         nats      query i against all B + E documents, then document i against all B queries

    The mean over 2B values is the mean of both directions' means. Extra negatives serve the queries only. A document
    that stands twice in a batch is its twin's false negative: with `document_id` such candidates are left out, and
    `masked_duplicates` counts them. Collapsed embeddings cost ln(number of candidates), and their
    `negative_similarity` is their `positive_similarity`.
    """
    pairs = _pairs(len(embeddings), num_extra_negatives)
    queries, documents = unit(embeddings).tensor_split([pairs])
    cosines = queries @ documents.T  # [B, B + E]
    same = same_document(document_id, pairs, cosines)
    similarity = (cosines / temperature).masked_fill(same, -torch.inf)
    partner = similarity.diagonal()
    to_documents = similarity.logsumexp(1) - partner
    to_queries = similarity[:, :pairs].logsumexp(0) - partner
    own = on_diagonal(cosines)
    return torch.cat([to_documents, to_queries]), {
        "query_to_document": stats.mean(to_documents),
        "document_to_query": stats.mean(to_queries),
        "masked_duplicates": stats.sum(same),
        **retrieval(cosines, own, ~own & ~same),
    }


def _ranked_blocks(config: Any) -> Sequence[str]:
    return ("queries", "positives", *(f"negatives {k + 1}" for k in range(config.num_hard_negatives)))


_ranked_units, _ranked_partners = in_blocks("multiple_negatives_ranking", _ranked_blocks)


@register_loss(
    "multiple_negatives_ranking",
    per="datum",
    couples="batch",
    reduction="mean",
    source="Henderson et al. 2017, arXiv:1705.00652",
    units=_ranked_units,
    partners=_ranked_partners,
    aliases=("mnrl",),
    differs={"Sentence Transformers": "The same formula and scale; duplicate documents are never masked."},
    claims=COSINE_LAWS,
)
def multiple_negatives_ranking(
    embeddings: Tensor, document_id: PerDatum | None = None, *, scale: Positive = 20.0, num_hard_negatives: Count = 0
) -> tuple[Tensor, dict[str, Stat]]:
    """log Σ_j exp(scale cos(query, document_j)) - scale cos(query, its document): InfoNCE from queries to documents only.

    embeddings    [(2 + H) B, D]  unitless  B queries, their B documents, then H blocks of B hard negatives
    document_id   [(2 + H) B]     unitless  optional integers: a document's id; a query carries that of its document
    returns       [B]             nats      query i against all (1 + H) B documents

    H is num_hard_negatives; a query's hard negatives are negatives of all other queries too. A scale of 20 is a
    temperature of 0.05. A document that stands twice in a batch is its twin's false negative: with `document_id` such
    candidates are left out, and `masked_duplicates` counts them. Collapsed embeddings cost ln(number of candidates).
    """
    pairs = len(embeddings) // (2 + num_hard_negatives)
    queries, documents = unit(embeddings).tensor_split([pairs])
    cosines = queries @ documents.T  # [B, (1 + H) B]
    same = same_document(document_id, pairs, cosines)
    similarity = (scale * cosines).masked_fill(same, -torch.inf)
    own = on_diagonal(cosines)
    return similarity.logsumexp(1) - similarity.diagonal(), {
        "masked_duplicates": stats.sum(same),
        **retrieval(cosines, own, ~own & ~same),
    }


_view_units, _view_partners = in_blocks("ntxent", lambda config: ("first views", "second views"), per_block=2)


@register_loss(
    "ntxent",
    per="datum",
    couples="batch",
    reduction="mean",
    source="Chen et al. 2020, arXiv:2002.05709 eq. 1",
    units=_view_units,
    partners=_view_partners,
    differs={
        "Sentence Transformers": "MultipleNegativesRankingLoss over query_to_doc and query_to_query is one view's half of it.",
    },
    claims=COSINE_LAWS,
)
def ntxent(embeddings: Tensor, *, temperature: Positive = 0.07) -> tuple[Tensor, dict[str, Stat]]:
    """Cross-entropy of finding one's other view among all 2B - 1 other views, by cosine similarity / temperature.

    embeddings   [2B, D]  unitless  B first views, then the second views of the same B things
    returns      [2B]     nats      one loss a view

    A view is no candidate of its own. The same thing twice in a batch is its twin's false negative: keep them distinct.
    Collapsed embeddings cost ln(2B - 1), and their `negative_similarity` is their `positive_similarity`.
    """
    views = unit(embeddings)
    cosines = views @ views.T  # [2B, 2B]
    itself = on_diagonal(cosines)
    partner = itself.roll(len(views) // 2, 1)
    similarity = cosines / temperature
    to_others = similarity.masked_fill(itself, -torch.inf).logsumexp(1)
    losses = to_others - torch.where(partner, similarity, 0).sum(1)
    return losses, retrieval(cosines, partner, ~itself & ~partner)


_siglip_units, _siglip_partners = in_blocks("siglip", lambda config: ("queries", "documents"))


@register_loss(
    "siglip",
    per="datum",
    couples="batch",
    reduction="mean",
    source="Zhai et al. 2023, arXiv:2303.15343 algorithm 1",
    units=_siglip_units,
    partners=_siglip_partners,
    differs={"Transformers": "SiglipModel learns scale (as its logarithm) and bias; here both are settings."},
    claims=COSINE_LAWS,
)
def siglip(
    embeddings: Tensor, document_id: PerDatum | None = None, *, scale: Positive = 10.0, bias: float = -10.0
) -> tuple[Tensor, dict[str, Stat]]:
    """-Σ_j log σ(±(scale cos(query, document_j) + bias)): + for a query's own document, - for every other.

    embeddings    [2B, D]  unitless  B queries, then their B documents in the same order
    document_id   [2B]     unitless  optional integers: a document's id; a query carries that of its document
    returns       [B]      nats      one sum over all B documents a query

    Each pair is judged alone, so no softmax couples the candidates. The mean over queries is the paper's Σ / B. The bias
    starts at -10 because negatives outnumber positives. A document that stands twice in a batch is its twin's false
    negative: with `document_id` such pairs are left out, and `masked_duplicates` counts them.
    """
    pairs = len(embeddings) // 2
    queries, documents = unit(embeddings).tensor_split([pairs])
    cosines = queries @ documents.T  # [B, B]
    same = same_document(document_id, pairs, cosines)
    own = on_diagonal(cosines)
    logits = scale * cosines + bias
    losses = -torch.where(same, 0, logsigmoid(torch.where(own, logits, -logits)))
    return losses.sum(1), {"masked_duplicates": stats.sum(same), **retrieval(cosines, own, ~own & ~same)}
