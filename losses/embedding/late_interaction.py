"""Late interaction: texts are compared token by token."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import stats
from ..batch.seqs import Seqs
from ..registry import register_loss
from ..spec.inputs import IdPerDatum
from ..spec.settings import Count, Positive
from ..stats import Stat
from .layout import in_blocks, normalized, on_diagonal, ranked_blocks, retrieval, same_document


@register_loss(
    "maxsim",
    per="datum",
    couples="batch",
    reduction="mean",
    source="Khattab & Zaharia 2020, ColBERT, arXiv:2004.12832 eq. 3; in-batch negatives: Santhanam et al. 2021, arXiv:2112.01488 section 3.2",
    groups=in_blocks("maxsim", ranked_blocks),
    aliases=("colbert",),
    differs={
        "Sentence Transformers 6.2.0": "MultiVectorMultipleNegativesRankingLoss: the same formula on vectors that its model has projected "
        "and normalized; mean_over_query is its mean_colbert_scores. Duplicate documents are never masked.",
        "PyLate 1.6.0": "Contrastive: the same formula, with a temperature of 1.",
    },
)
def maxsim(
    token_embeddings: Tensor,
    seqs: Seqs,
    document_id: IdPerDatum | None = None,
    *,
    scale: Positive = 1.0,
    num_hard_negatives: Count = 0,
    mean_over_query: bool = False,
) -> tuple[Tensor, dict[str, Stat]]:
    """log Σ_j exp(scale s_ij) - scale s_ii, where s_ij = Σ_t max_u cos(token t of query i, token u of document j).

    token_embeddings   [T, D]          unitless  hidden states of B queries, their B documents, then H blocks of B hard negatives
    document_id        [(2 + H) B]     unitless  optional integers: the document's id; a query carries that of its document
    returns            [B]             nats      query i against all (1 + H) B documents

    H is num_hard_negatives. Tokens of weight 0 are left out on both sides, such as punctuation of documents; other weights
    multiply the terms of a query's tokens and say nothing of a document's. With mean_over_query the sum is divided by the query's
    weights, so that scores lie in [-1, 1] whatever its length: take a scale of about its number of tokens then. The largest
    cosine of several equal ones shares its gradient. `positive_similarity` and `negative_similarity` are means of s.

    When to use: Search that must see single words and names: an index of vectors per token, some hundred times as large as one of
    vectors per text. Hidden states are compared as they are: a projection to fewer dimensions, as ColBERT's 128, is a module of your
    own around this loss's formula.
    """
    pairs = seqs.count // (2 + num_hard_negatives)
    texts = seqs.split(normalized(token_embeddings))
    queries, documents = texts[:pairs], texts[pairs:]
    if not documents:
        scores = token_embeddings.new_zeros(0, 0) * token_embeddings.sum()
    else:
        tokens = torch.cat(queries)
        nearest = torch.stack(
            [(tokens @ document.T).amax(1) for document in documents], 1
        )  # [tokens of queries, (1 + H) B]
        of_all = pad(nearest, (0, 0, 0, len(token_embeddings) - len(tokens)))
        scores = (seqs.mean(of_all) if mean_over_query else seqs.sum(of_all))[:pairs]
    own = on_diagonal(scores)
    same = same_document(document_id, pairs, scores)
    logits = (scale * scores).masked_fill(same, -torch.inf)
    return logits.logsumexp(1) - logits.diagonal(), {
        "masked_duplicates": stats.sum(same),
        **retrieval(scores, own, ~own & ~same),
    }
