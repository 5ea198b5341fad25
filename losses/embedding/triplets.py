"""Losses over an anchor, a text that matches it, and one that does not."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn.functional import relu

from .. import stats
from ..registry import register_loss
from ..spec.settings import NonNegative
from ..spec.spec import PerDatum
from ..stats import Stat
from .layout import Distance, cosine, distance_between, in_blocks


@register_loss(
    "triplet",
    per="datum",
    couples="batch",
    reduction="mean",
    source="Hermans, Beyer & Leibe 2017, arXiv:1703.07737 section 2",
    groups=in_blocks("triplet", lambda config: ("anchors", "positives", "negatives")),
    differs={
        "Sentence Transformers 6.2.0": "TripletLoss has margin 5 by default.",
        "optax 0.2.8": "Its distance has an eps of 1e-6.",
    },
    laws={
        "scale_invariance": {"own": {"distance": "cosine"}},
        "rotation_invariance": {},
        "grad_cache_is_full_batch": {},
    },
)
def triplet(
    embeddings: Tensor, *, margin: NonNegative = 1.0, distance: Distance = "euclidean"
) -> tuple[Tensor, dict[str, Stat]]:
    """max(0, d(anchor, positive) - d(anchor, negative) + margin).

    embeddings   [3B, D]  unitless  B anchors, then their B positives, then their B negatives, in the same order
    returns      [B]      unitless  one loss per triplet

    d is the euclidean distance of the embeddings, not normalized, or 1 - cosine. A triplet whose negative is farther than
    its positive by the margin has no gradient; `active` is the share of triplets that have one. For collapsed embeddings
    the loss is the margin and euclidean gradients are 0, so they stay collapsed.

    When to use: An anchor, a text that is like it and one that is not.
    """
    anchors, positives, negatives = embeddings.tensor_split(3)
    near = distance_between(anchors, positives, distance)
    far = distance_between(anchors, negatives, distance)
    losses = relu(near - far + margin)
    return losses, {
        "active": stats.mean(losses > 0),
        "positive_distance": stats.mean(near),
        "negative_distance": stats.mean(far),
    }


@register_loss(
    "margin_mse",
    per="datum",
    couples="batch",
    reduction="mean",
    source="Hofstätter et al. 2020, arXiv:2010.02666",
    groups=in_blocks("margin_mse", lambda config: ("queries", "positives", "negatives")),
    differs={
        "Sentence Transformers 6.2.0": "MarginMSELoss takes the teacher's margin, or its scores in a row, as the label."
    },
    laws={
        "scale_invariance": {"own": {"similarity": "cosine"}},
        "rotation_invariance": {},
        "grad_cache_is_full_batch": {},
    },
)
def margin_mse(
    embeddings: Tensor, teacher_score: PerDatum, *, similarity: Literal["dot", "cosine"] = "dot"
) -> tuple[Tensor, dict[str, Stat]]:
    """((s(query, positive) - s(query, negative)) - (teacher's score of the positive - of the negative))².

    embeddings      [3B, D]  unitless  B queries, then their B positives, then their B negatives, in the same order
    teacher_score   [3B]     unitless  the teacher's score of this document for its query; the queries' own are not read
    returns         [B]      unitless  one loss per triplet

    Distillation of a cross-encoder's margins. s is the dot product, or the cosine, whose margins lie within ±2: scale the
    teacher's to that range. `order_agreement` is the share of triplets in which both prefer the same document.

    When to use: Distillation of a cross-encoder that scored a positive and a negative document for each query.
    """
    score = cosine if similarity == "cosine" else _dot
    queries, positives, negatives = embeddings.tensor_split(3)
    _, teacher_positive, teacher_negative = teacher_score.tensor_split(3)
    margin = score(queries, positives) - score(queries, negatives)
    wanted = teacher_positive - teacher_negative
    return (margin - wanted).square(), {
        "order_agreement": stats.mean(margin * wanted > 0),
        "margin": stats.mean(margin),
        "teacher_margin": stats.mean(wanted),
    }


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum(-1)
