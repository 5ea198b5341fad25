"""Queries that pick their documents among those of all rows, with hard negatives and further directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ...datums.errors import LossConfigError
from .. import stats
from ..registry import register_loss
from ..spec.inputs import IdPerDatum
from ..spec.settings import Count, NonNegative, Positive
from ..stats import Stat
from .in_batch import COSINE_LAWS
from .layout import Similarity, compared_by, in_blocks, of_own_row, on_diagonal, ranked_blocks, retrieval, share_an_id

#: Which negatives are made to weigh more than their similarity says.
Hardness = Literal["in_batch_negatives", "hard_negatives", "all_negatives"]


def _blocks(config: Any) -> Sequence[str]:
    if config.hardness_strength and config.hardness == "hard_negatives" and not config.num_hard_negatives:
        raise LossConfigError(
            "multiple_negatives_ranking: hardness='hard_negatives' weighs a query's own hard negatives, and "
            "num_hard_negatives is 0. Give some, or take 'in_batch_negatives'"
        )
    return ranked_blocks(config)


def _conflict(settings: Mapping[str, Any]) -> str:
    if settings["hardness"] != "in_batch_negatives" and not settings["hardness_strength"]:
        return f"hardness={settings['hardness']!r} does nothing at hardness_strength 0: give a strength, such as 5"
    if settings["partition"] == "per_direction":
        if settings["query_to_query"] or settings["document_to_document"]:
            return (
                "partition='per_direction' is a softmax for each direction, and query_to_query and document_to_document have "
                "no right answer among their candidates. Take 'joint'"
            )
        if not settings["document_to_query"]:
            return "partition='per_direction' needs a second direction: set document_to_query=True"
    return ""


@register_loss(
    "multiple_negatives_ranking",
    per="datum",
    couples="batch",
    reduction="mean",
    source="Henderson et al. 2017, arXiv:1705.00652; all directions jointly: Li et al. 2023, arXiv:2308.03281 eq. 2; hardness: Lan et "
    "al. 2025, arXiv:2503.04812 eq. 5, and Schechter Vera et al. 2025, arXiv:2509.20354",
    groups=in_blocks("multiple_negatives_ranking", _blocks),
    conflict=_conflict,
    aliases=("mnrl",),
    differs={
        "Sentence Transformers 6.2.0": "The same formulas; directions is a tuple, of which ours are settings, and duplicate "
        "documents are never masked.",
    },
    laws=COSINE_LAWS,
)
def multiple_negatives_ranking(
    embeddings: Tensor,
    document_id: IdPerDatum | None = None,
    *,
    scale: Positive = 20.0,
    num_hard_negatives: Count = 0,
    similarity: Similarity = "cosine",
    query_to_query: bool = False,
    document_to_query: bool = False,
    document_to_document: bool = False,
    partition: Literal["joint", "per_direction"] = "joint",
    hardness: Hardness = "in_batch_negatives",
    hardness_strength: NonNegative = 0.0,
) -> tuple[Tensor, dict[str, Stat]]:
    """log Σ_j exp(scale cos(query, document_j)) - scale cos(query, its document): InfoNCE from queries to documents only.

    embeddings    [(2 + H) B, D]  unitless  B queries, their B documents, then H blocks of B hard negatives
    document_id   [(2 + H) B]     unitless  optional integers: the document's id; a query carries that of its document
    returns       [B]             nats      query i against all (1 + H) B documents

    H is num_hard_negatives; a query's hard negatives are also negatives of all other queries. Scale 20 is temperature
    0.05; with similarity "dot" the vectors are not normalized, and scale 1 is usual. A document that occurs twice in a batch
    would be a false negative: with `document_id` such candidates are left out, and `masked_duplicates` counts those among the
    documents. For collapsed embeddings the loss is ln(number of candidates).

    Further directions add candidates: query_to_query the other queries, document_to_query the query's document against all
    queries, document_to_document the same against the documents of other rows. With partition "joint" one softmax is over all
    of them; with "per_direction" each direction has its own, and their logarithms are averaged.

    hardness_strength adds itself times the similarity, without a gradient of its own, to the logits of in-batch negatives, of a
    query's own hard negatives, or of both (hardness), from queries to documents: what is near weighs more. Published
    strengths are 9 for in-batch and 5 for hard negatives.

    When to use: Search: queries and the documents that answer them, with hard negatives if there are any. The usual
    choice for retrieval. With pairs alone, all directions give each query more negatives (GTE); hardness helps where most
    negatives are easy, which `in_batch_recall_at_1` near 1 shows.
    """
    pairs = len(embeddings) // (2 + num_hard_negatives)
    queries, candidates = compared_by(similarity, embeddings).tensor_split([pairs])
    ids = None if document_id is None else document_id[:pairs], None if document_id is None else document_id[pairs:]
    cosines = queries @ candidates.T  # [B, (1 + H) B]
    own = on_diagonal(cosines)
    same = share_an_id(*ids, cosines) & ~own
    logits = scale * cosines
    if hardness_strength:
        logits = logits + hardness_strength * torch.where(_weighed(hardness, cosines), cosines.detach(), 0)
    logits = logits.masked_fill(same, -torch.inf)
    further = {"qq": query_to_query, "dq": document_to_query, "dd": document_to_document}
    scores = [logits, *_further([key for key, chosen in further.items() if chosen], queries, candidates, ids, scale)]
    if partition == "joint":
        normalizer = torch.cat(scores, 1).logsumexp(1)
    else:
        normalizer = torch.stack([one.logsumexp(1) for one in scores]).mean(0)
    return normalizer - logits.diagonal(), {
        "masked_duplicates": stats.sum(same),
        **retrieval(cosines, own, ~own & ~same),
    }


def _further(
    directions: Sequence[str],
    queries: Tensor,
    candidates: Tensor,
    ids: tuple[Tensor | None, Tensor | None],
    scale: float,
) -> Iterator[Tensor]:
    """[B, C] logits of each direction, from queries or from documents, -inf where a candidate is none.

    ids: of the queries, which are those of their documents, and of the candidates.
    """
    of_queries, of_candidates = ids
    for direction in directions:
        rows = queries if direction[0] == "q" else candidates[: len(queries)]
        similarity = rows @ (queries if direction[1] == "q" else candidates).T
        if direction == "dd":
            left_out = of_own_row(similarity) | share_an_id(of_queries, of_candidates, similarity)
        else:
            itself = on_diagonal(similarity)
            twins = share_an_id(of_queries, of_queries, similarity)
            left_out = itself | twins if direction == "qq" else twins & ~itself
        yield (scale * similarity).masked_fill(left_out, -torch.inf)


def _weighed(hardness: Hardness, cosines: Tensor) -> Tensor:
    """[B, (1 + H) B] bool: the negatives that weigh more."""
    own_row, positive = of_own_row(cosines), on_diagonal(cosines)
    if hardness == "in_batch_negatives":
        return ~own_row
    return own_row & ~positive if hardness == "hard_negatives" else ~positive
