"""Contrastive losses whose negatives are the other datums of the batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ...datums.errors import ShapeError
from .. import stats
from ..registry import register_loss
from ..spec.groups import Grouping
from ..spec.settings import Count, Positive
from ..spec.spec import IdPerDatum
from ..stats import Stat
from .layout import in_blocks, normalized, on_diagonal, retrieval, same_document

#: Laws that losses over cosines obey.
COSINE_LAWS: Mapping[str, Mapping[str, Any]] = {
    "scale_invariance": {},
    "rotation_invariance": {},
    "grad_cache_is_full_batch": {},
}


def _queries_with_documents(datums: int, config: Any, inputs: Any) -> Grouping:
    pairs = _pairs(datums, config.num_extra_negatives)
    return Grouping([[i, pairs + i] for i in range(pairs)], 2 * pairs)


def _pairs(datums: int, extra_negatives: int) -> int:
    pairs, left_over = divmod(datums - extra_negatives, 2)
    if pairs < 0 or left_over:
        raise ShapeError(
            f"info_nce takes B queries, their B documents and {extra_negatives} extra negatives, but there are {datums} "
            "datums. Set num_extra_negatives to the number of documents without a query"
        )
    return pairs


@register_loss(
    "info_nce",
    per="datum",
    couples="batch",
    reduction="mean",
    source="van den Oord et al. 2018, arXiv:1807.03748 eq. 4; both directions: Radford et al. 2021, arXiv:2103.00020 fig. 3",
    groups=_queries_with_documents,
    aliases=("contrastive",),
    differs={
        "Fireworks 1.2.30": "The same formula; its temperature has no default, and duplicate documents are never masked.",
        "Sentence Transformers 6.2.0": "MultipleNegativesRankingLoss with both directions per_direction; scale 20 is temperature "
        "0.05, and duplicate documents are never masked.",
    },
    laws=COSINE_LAWS,
)
def info_nce(
    embeddings: Tensor,
    document_id: IdPerDatum | None = None,
    *,
    temperature: Positive = 0.02,
    num_extra_negatives: Count = 0,
) -> tuple[Tensor, dict[str, Stat]]:
    """Cross-entropy of picking the partner among all candidates, by cosine similarity / temperature.

    embeddings    [2B + E, D]  unitless  B queries, their B documents in the same order, E extra negative documents
    document_id   [2B + E]     unitless  optional integers: the document's id; a query carries that of its document
    returns       [2B]         nats      query i against all B + E documents, then document i against all B queries

    The mean over the 2B values is the mean of both directions' means. Extra negatives are candidates for queries only. A
    document that occurs twice in a batch would be a false negative: with `document_id` such candidates are left out, and
    `masked_duplicates` counts them. For collapsed embeddings the loss is ln(number of candidates), and
    `negative_similarity` equals `positive_similarity`.

    When to use: Pairs of texts that belong together, in both directions; the other texts of the batch are the
    negatives. Larger batches are better.
    """
    pairs = _pairs(len(embeddings), num_extra_negatives)
    queries, documents = normalized(embeddings).tensor_split([pairs])
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


@register_loss(
    "ntxent",
    per="datum",
    couples="batch",
    reduction="mean",
    source="Chen et al. 2020, arXiv:2002.05709 eq. 1",
    groups=in_blocks("ntxent", lambda config: ("first views", "second views"), per_block=2),
    differs={
        "Sentence Transformers 6.2.0": "MultipleNegativesRankingLoss over query_to_doc and query_to_query is one view's half of it.",
    },
    laws=COSINE_LAWS,
)
def ntxent(embeddings: Tensor, *, temperature: Positive = 0.07) -> tuple[Tensor, dict[str, Stat]]:
    """Cross-entropy of picking a view's partner among all 2B - 1 other views, by cosine similarity / temperature.

    embeddings   [2B, D]  unitless  B first views, then the second views of the same B items
    returns      [2B]     nats      one loss per view

    A view is not its own candidate. An item that occurs twice in a batch is a false negative, so keep items distinct. For
    collapsed embeddings the loss is ln(2B - 1), and `negative_similarity` equals `positive_similarity`.

    When to use: Two views of each text, such as two dropout passes, without labels.
    """
    views = normalized(embeddings)
    cosines = views @ views.T  # [2B, 2B]
    itself = on_diagonal(cosines)
    partner = itself.roll(len(views) // 2, 1)
    similarity = cosines / temperature
    to_others = similarity.masked_fill(itself, -torch.inf).logsumexp(1)
    losses = to_others - torch.where(partner, similarity, 0).sum(1)
    return losses, retrieval(cosines, partner, ~itself & ~partner)


@register_loss(
    "siglip",
    per="datum",
    couples="batch",
    reduction="mean",
    source="Zhai et al. 2023, arXiv:2303.15343 algorithm 1",
    groups=in_blocks("siglip", lambda config: ("queries", "documents")),
    differs={"Transformers 5.23.0": "SiglipModel learns scale (as its logarithm) and bias; here both are settings."},
    laws=COSINE_LAWS,
)
def siglip(
    embeddings: Tensor, document_id: IdPerDatum | None = None, *, scale: Positive = 10.0, bias: float = -10.0
) -> tuple[Tensor, dict[str, Stat]]:
    """-Σ_j log σ(±(scale cos(query, document_j) + bias)): + for a query's own document, - for every other.

    embeddings    [2B, D]  unitless  B queries, then their B documents in the same order
    document_id   [2B]     unitless  optional integers: the document's id; a query carries that of its document
    returns       [B]      nats      the sum over all B documents, for each query

    Each pair is judged by itself; there is no softmax over candidates. The mean over queries is the paper's Σ / B. The bias
    is -10 because negatives outnumber positives. A document that occurs twice in a batch would be a false negative: with
    `document_id` such pairs are left out, and `masked_duplicates` counts them.

    When to use: Pairs of texts in very large or very small batches: there is no softmax over the batch.
    """
    pairs = len(embeddings) // 2
    queries, documents = normalized(embeddings).tensor_split([pairs])
    cosines = queries @ documents.T  # [B, B]
    same = same_document(document_id, pairs, cosines)
    own = on_diagonal(cosines)
    logits = scale * cosines + bias
    losses = -torch.where(same, 0, logsigmoid(torch.where(own, logits, -logits)))
    return losses.sum(1), {"masked_duplicates": stats.sum(same), **retrieval(cosines, own, ~own & ~same)}
