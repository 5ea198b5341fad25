"""In-batch negatives that another model, the guide, has looked through."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .. import stats
from ..registry import register_loss
from ..spec.inputs import IdPerDatum, VectorPerDatum
from ..spec.settings import Count, NonNegative, Positive
from ..stats import Stat
from .in_batch import COSINE_LAWS
from .layout import in_blocks, normalized, on_diagonal, ranked_blocks, retrieval, same_document


@register_loss(
    "gist",
    per="datum",
    couples="batch",
    reduction="mean",
    source="Solatorio 2024, GISTEmbed, arXiv:2402.16829 section 3",
    groups=in_blocks("gist", ranked_blocks),
    differs={
        "Sentence Transformers 6.2.0": "GISTEmbedLoss runs the guide itself; it leaves a text among its own candidates where the guide "
        "finds its pair as near as the text itself, and never masks duplicate documents by their ids. CachedGISTEmbedLoss is the same "
        "loss: the trainer computes any batch that does not fit in two passes.",
    },
    laws=COSINE_LAWS,
)
def gist(
    embeddings: Tensor,
    guide_embedding: VectorPerDatum,
    document_id: IdPerDatum | None = None,
    *,
    temperature: Positive = 0.01,
    margin: NonNegative = 0.0,
    margin_strategy: Literal["absolute", "relative"] = "absolute",
    num_hard_negatives: Count = 0,
    contrast_queries: bool = True,
    contrast_positives: bool = True,
) -> tuple[Tensor, dict[str, Stat]]:
    """-log softmax(cos(query, its document) / temperature) over the candidates that the guide finds less near than that document.

    embeddings        [(2 + H) B, D]  unitless  B queries, their B documents, then H blocks of B hard negatives
    guide_embedding   [(2 + H) B, G]  unitless  the guide's embedding of the same text; G need not be D
    document_id       [(2 + H) B]     unitless  optional integers: the document's id; a query carries that of its document
    returns           [B]             nats      one loss per query

    H is num_hard_negatives. The candidates of query i are all documents, with contrast_queries the other queries, and with
    contrast_positives the other positives as seen from its own. One whose similarity under the guide is above s_i - margin,
    where s_i is the guide's similarity of query i and its document, is taken for a false negative and left out; with
    margin_strategy "relative" above s_i - margin |s_i|. A query's own document always stays. `masked_by_guide` is the share
    of candidates that are left out, `masked_duplicates` counts those left out for their ids.

    When to use: As multiple_negatives_ranking, where many negatives of a batch may answer the query too. The guide is an
    encoder that is good already, run over the data once. Watch `masked_by_guide`: near 0 the guide changes nothing, near 1
    few negatives are left.
    """
    pairs = len(embeddings) // (2 + num_hard_negatives)
    queries, candidates = normalized(embeddings).tensor_split([pairs])
    guides, guided = normalized(guide_embedding).tensor_split([pairs])
    cosines, seen = queries @ candidates.T, guides @ guided.T  # [B, (1 + H) B]
    own, same = on_diagonal(cosines), same_document(document_id, pairs, cosines)
    near = seen.diagonal()[:, None]
    limit = near - (margin if margin_strategy == "absolute" else margin * near.abs())
    masked = (seen > limit) & ~own
    logits, left_out, masks, tried = [cosines], [masked | same], [masked], [~own]
    for is_contrasted, rows, of_guide in (
        (contrast_queries, queries, guides),
        (contrast_positives, candidates[:pairs], guided[:pairs]),
    ):
        if is_contrasted:
            itself, masked_here = on_diagonal(rows @ rows.T), of_guide @ of_guide.T > limit
            logits.append(rows @ rows.T)
            left_out.append(itself | masked_here)
            masks.append(masked_here)
            tried.append(~itself)
    scores = torch.cat(logits, 1).masked_fill(torch.cat(left_out, 1), -torch.inf) / temperature
    return scores.logsumexp(1) - cosines.diagonal() / temperature, {
        "masked_by_guide": stats.mean(torch.cat(masks, 1), torch.cat(tried, 1)),
        "masked_duplicates": stats.sum(same),
        **retrieval(cosines, own, ~own & ~masked & ~same),
    }
