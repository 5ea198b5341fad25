"""Losses over labelled pairs of texts, each pair by itself: datums 2i and 2i+1."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import relu

from .. import stats
from ..batch.seqs import Seqs
from ..registry import register_loss
from ..spec.settings import NonNegative
from ..spec.spec import PerDatum
from ..stats import Stat
from .layout import Distance, cosine, distance_between


@register_loss(
    "contrastive_pairs",
    per="pair",
    reduction="pair-mean",
    source="Hadsell, Chopra & LeCun 2006, Dimensionality Reduction by Learning an Invariant Mapping, eq. 4",
    differs={
        "Sentence Transformers 6.2.0": "ContrastiveLoss: its euclidean distance adds 1e-6 to every coordinate's difference."
    },
    laws={"scale_invariance": {}, "rotation_invariance": {}, "grad_cache_is_full_batch": {}},
)
def contrastive_pairs(
    embeddings: Tensor, label: PerDatum, seqs: Seqs, *, margin: NonNegative = 0.5, distance: Distance = "cosine"
) -> tuple[Tensor, dict[str, Stat]]:
    """½ (y d² + (1 - y) max(0, margin - d)²), where d is the distance between a pair's embeddings and y its label.

    embeddings   [N, D]  unitless  datums 2i and 2i+1 are a pair
    label        [N]     unitless  1: the two mean the same; 0: they do not
    returns      [N/2]   unitless  one loss per pair

    d is 1 - cosine, or the euclidean distance. A pair's label is that of its first datum; `labels_disagree` counts pairs
    whose second datum has another. A pair with label 0 has no gradient once d is at least the margin;
    `negative_distance` shows when all have reached it. Labels between 0 and 1 weight the two terms.

    When to use: Pairs of texts marked same or different.
    """
    first, second = seqs.pairs(embeddings)
    same, same_again = seqs.pairs(label)
    apart = distance_between(first, second, distance)
    losses = 0.5 * (same * apart.square() + (1 - same) * relu(margin - apart).square())
    return losses, {
        "positive_distance": stats.mean(apart, same > 0.5),
        "negative_distance": stats.mean(apart, same <= 0.5),
        "labels_disagree": stats.sum(same != same_again),
    }


@register_loss(
    "cosine_similarity",
    per="pair",
    reduction="pair-mean",
    source="Reimers & Gurevych 2019, arXiv:1908.10084 section 3, regression objective",
    laws={"scale_invariance": {}, "rotation_invariance": {}, "grad_cache_is_full_batch": {}},
)
def cosine_similarity(embeddings: Tensor, label: PerDatum, seqs: Seqs) -> tuple[Tensor, dict[str, Stat]]:
    """(cos(a, b) - y)², where a and b are a pair's embeddings and y the similarity they should have.

    embeddings   [N, D]  unitless  datums 2i and 2i+1 are a pair
    label        [N]     unitless  wanted cosine, from -1 to 1: divide scores from 0 to 5 by 5
    returns      [N/2]   unitless  one loss per pair

    A pair's label is that of its first datum; `labels_disagree` counts pairs whose second datum has another.

    When to use: Pairs of texts with a score between -1 and 1, when the score itself should be reproduced.
    """
    first, second = seqs.pairs(embeddings)
    wanted, wanted_again = seqs.pairs(label)
    similarity = cosine(first, second)
    return (similarity - wanted).square(), {
        "similarity": stats.mean(similarity),
        "labels_disagree": stats.sum(wanted != wanted_again),
    }
