"""Embeddings, or the similarities among them, drawn to those of a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from ...datums.errors import LossConfigError, ShapeError
from .. import stats
from ..registry import register_loss
from ..spec.inputs import PerDatum, VectorPerDatum
from ..spec.settings import Count, Positive
from ..stats import Stat
from .layout import Similarity, compared_by, cosine, in_blocks, ranked_blocks


@register_loss(
    "embedding_distill",
    per="datum",
    reduction="mean",
    source="Kim et al. 2023, EmbedDistill, arXiv:2301.12005 eq. 7; distance mse: Reimers & Gurevych 2020, arXiv:2004.09813 eq. 1",
    differs={
        "Sentence Transformers 6.2.0": "EmbedDistillLoss, and MSELoss with distance mse; both can learn a projection to the teacher's width, "
        "here a module of your own.",
    },
    laws={"grad_cache_is_full_batch": {}, "scale_invariance": {"own": {"distance": "cosine"}}},
)
def embedding_distill(
    embeddings: Tensor, teacher_embedding: VectorPerDatum, *, distance: Literal["cosine", "l2", "mse"] = "cosine"
) -> tuple[Tensor, dict[str, Stat]]:
    """1 - cos(x, t), |x - t| or mean (x - t)², by distance, where x is an embedding and t the teacher's of the same text.

    embeddings          [N, D]  unitless  any texts, in any order
    teacher_embedding   [N, D]  unitless  the teacher's embedding of the same text, or of its translation
    returns             [N]     unitless  one loss per datum

    Raises ShapeError where the teacher's vectors have another width: a projection between the two is a module of your own,
    which a registered loss may hold. `teacher_similarity` is the mean cosine to the teacher's vectors under every distance.

    When to use: A small encoder for a large one's place, or a second language for a known one: texts alone are enough,
    without pairs or labels. "cosine" where only directions are used, "mse" where the vectors themselves are.
    """
    if len(embeddings) and embeddings.shape[1] != teacher_embedding.shape[1]:
        raise ShapeError(
            f"embedding_distill: embeddings have {embeddings.shape[1]} coordinates, but teacher_embedding has "
            f"{teacher_embedding.shape[1]}. Take a teacher of that width, or distill its similarities: in_batch_kl"
        )
    similarity = cosine(embeddings, teacher_embedding)
    if distance == "cosine":
        losses = 1 - similarity
    elif distance == "l2":
        losses = torch.linalg.vector_norm(embeddings - teacher_embedding, dim=1)
    else:
        losses = (embeddings - teacher_embedding).square().mean(1)
    return losses, {"teacher_similarity": stats.mean(similarity)}


def _candidates(config: Any) -> Sequence[str]:
    if not config.num_hard_negatives:
        raise LossConfigError(
            "score_kl compares a query's own candidates, so there must be two: num_hard_negatives is at least 1"
        )
    return ranked_blocks(config)


@register_loss(
    "score_kl",
    per="datum",
    couples="batch",
    reduction="mean",
    source="Lin, Yang & Lin 2020, TCT-ColBERT, arXiv:2010.11386 eq. 4; temperatures: Hinton et al. 2015, arXiv:1503.02531 section 2",
    groups=in_blocks("score_kl", _candidates),
    differs={
        "Sentence Transformers 6.2.0": "DistillKLDivLoss: the same formula; labels are the teacher's scores in a row."
    },
    laws={
        "grad_cache_is_full_batch": {},
        "rotation_invariance": {},
        "scale_invariance": {"own": {"similarity": "cosine"}},
    },
)
def score_kl(
    embeddings: Tensor,
    teacher_score: PerDatum,
    *,
    num_hard_negatives: Count = 1,
    similarity: Similarity = "dot",
    temperature: Positive = 1.0,
    teacher_temperature: Positive | None = None,
) -> tuple[Tensor, dict[str, Stat]]:
    """temperature² KL(teacher || student) over each query's own documents, of softmax(score / temperature).

    embeddings      [(2 + H) B, D]  unitless  B queries, their B documents, then H blocks of B hard negatives
    teacher_score   [(2 + H) B]     unitless  the teacher's score of this document for its query; the queries' own are not read
    returns         [B]             nats      one loss per query; times temperature²

    H is num_hard_negatives, at least 1. The teacher's scores are divided by teacher_temperature, by default the same. The
    factor keeps gradients about as large at temperatures above 1. `order_agreement` is the share of queries for which
    both rank the same document first.

    When to use: Distillation of a cross-encoder that scored several documents for each query: unlike margin_mse it reads
    all scores at once, and unlike multiple_negatives_ranking none from other queries. Bring the teacher's scores to the
    scale of the student's similarities by teacher_temperature.
    """
    pairs = len(embeddings) // (2 + num_hard_negatives)
    queries, documents = compared_by(similarity, embeddings).tensor_split([pairs])
    scores = (queries.unsqueeze(0) * documents.unflatten(0, (-1, pairs))).sum(2).T  # [B, 1 + H]
    wanted = teacher_score[pairs:].to(scores).unflatten(0, (-1, pairs)).T
    losses = _kl(wanted / (teacher_temperature or temperature), scores / temperature)
    return losses * temperature**2, {"order_agreement": stats.mean(scores.argmax(1) == wanted.argmax(1))}


@register_loss(
    "in_batch_kl",
    per="datum",
    couples="batch",
    reduction="mean",
    source="Lin, Yang & Lin 2020, TCT-ColBERT, arXiv:2010.11386 section 3: in-batch knowledge distillation",
    groups=in_blocks("in_batch_kl", ranked_blocks),
    laws={"grad_cache_is_full_batch": {}, "rotation_invariance": {}, "scale_invariance": {}},
)
def in_batch_kl(
    embeddings: Tensor,
    teacher_embedding: VectorPerDatum,
    *,
    num_hard_negatives: Count = 0,
    temperature: Positive = 0.05,
    teacher_temperature: Positive | None = None,
) -> tuple[Tensor, dict[str, Stat]]:
    """KL(teacher || student) over all documents of the batch, of softmax(cos(query, document) / temperature).

    embeddings          [(2 + H) B, D]  unitless  B queries, their B documents, then H blocks of B hard negatives
    teacher_embedding   [(2 + H) B, G]  unitless  the teacher's embedding of the same text; G need not be D
    returns             [B]             nats      one loss per query, against all (1 + H) B documents

    H is num_hard_negatives. The teacher's cosines are divided by teacher_temperature, by default the same. A document that
    occurs twice is no trouble: the teacher gives both their share. `order_agreement` is the share of queries for which both
    find the same document nearest.

    When to use: A teacher that is an encoder, of any width: its view of all documents of the batch, where a label knows one.
    With multiple_negatives_ranking in a mixture, the labels count too.
    """
    pairs = len(embeddings) // (2 + num_hard_negatives)
    scores, wanted = (
        vectors[:pairs] @ vectors[pairs:].T
        for vectors in (compared_by("cosine", embeddings), compared_by("cosine", teacher_embedding))
    )
    losses = _kl(wanted / (teacher_temperature or temperature), scores / temperature)
    agree = scores.argmax(1) == wanted.argmax(1) if pairs else scores.new_zeros(0)
    return losses, {"order_agreement": stats.mean(agree)}


def _kl(teacher: Tensor, student: Tensor) -> Tensor:
    """[R] nats: KL of the softmax of rows [R, C] of logits."""
    wanted = log_softmax(teacher, 1)
    return (wanted.exp() * (wanted - log_softmax(student, 1))).sum(1)
