"""Triplets that a batch of texts with classes holds: an anchor, another text of its class, and one of another class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, relu, softplus

from .. import stats
from ..batch.seqs import Seqs
from ..registry import register_loss
from ..spec.inputs import IdPerDatum
from ..spec.settings import NonNegative
from ..spec.spec import Grouping
from ..stats import Stat
from .layout import Distance, all_distances, on_diagonal

LAWS: Mapping[str, Mapping[str, Any]] = {
    "scale_invariance": {"own": {"distance": "cosine"}},
    "rotation_invariance": {},
    "grad_cache_is_full_batch": {},
}
HERMANS = "Hermans, Beyer & Leibe 2017, arXiv:1703.07737"
#: What Sentence Transformers does with texts that are in no triplet.
STRAYS = "a text without another of its class counts as a positive at distance 0, and one without a text of another class as its own negative"


def _relations(class_id: Tensor) -> tuple[Tensor, Tensor]:
    """[N, N] bool: which text is another of the row's class, and which is of another class."""
    same = class_id[:, None] == class_id[None, :]
    return same & ~on_diagonal(same), ~same


def _anchors(class_id: Tensor) -> Tensor:
    """[N] bool: which texts have both another of their class and one of another class."""
    positive, negative = _relations(class_id)
    return positive.any(1) & negative.any(1)


def _one_per_anchor(datums: int, config: Any, inputs: Mapping[str, Tensor | None] | None) -> Grouping:
    ids = None if inputs is None else inputs["class_id"]
    return Grouping(values=None if ids is None else int(_anchors(ids).sum()))


def _one_per_pair(datums: int, config: Any, inputs: Mapping[str, Tensor | None] | None) -> Grouping:
    ids = None if inputs is None else inputs["class_id"]
    if ids is None:
        return Grouping()
    positive, negative = _relations(ids)
    return Grouping(values=int((positive & negative.any(1, keepdim=True)).sum()))


def _hardest(
    embeddings: Tensor, class_id: Tensor, seqs: Seqs, distance: Distance
) -> tuple[Tensor, Tensor, dict[str, Stat]]:
    """[A] distances of each anchor to the farthest text of its class and to the nearest of another, and metrics."""
    anchors = _anchors(class_id)
    rows = seqs.chosen(anchors)
    positive, negative = (relation[rows] for relation in _relations(class_id))
    apart = all_distances(embeddings, distance)[rows]
    if not len(apart):
        far = near = apart.sum(1)
    else:
        far = apart.masked_fill(~positive, -torch.inf).amax(1)
        near = apart.masked_fill(~negative, torch.inf).amin(1)
    return (
        far,
        near,
        {
            "positive_distance": stats.mean(far),
            "negative_distance": stats.mean(near),
            "without_triplet": stats.sum(~anchors),
        },
    )


@register_loss(
    "batch_hard_triplet",
    per="datum",
    couples="batch",
    reduction="mean",
    source=f"{HERMANS} eq. 5",
    groups=_one_per_anchor,
    differs={"Sentence Transformers 6.2.0": f"BatchHardTripletLoss: {STRAYS}."},
    laws=LAWS,
)
def batch_hard_triplet(
    embeddings: Tensor, class_id: IdPerDatum, seqs: Seqs, *, margin: NonNegative = 5.0, distance: Distance = "euclidean"
) -> tuple[Tensor, dict[str, Stat]]:
    """max(0, margin + max_p d(anchor, p) - min_n d(anchor, n)) over texts p of the anchor's class and n of others.

    embeddings   [N, D]  unitless  texts in any order
    class_id     [N]     unitless  integers: the class of each text
    returns      [A]     unitless  one loss per text that has both another of its class and one of another class

    d is the euclidean distance of the embeddings, not normalized, or 1 - cosine: then the margin is at most 2. Each text is
    an anchor; those in no triplet are left out, and `without_triplet` counts them. Equal vectors have no gradient between
    them. `active` is the share of anchors with a gradient.

    When to use: Texts with classes, a few of each in every batch. The hardest triplet of each text teaches most, and
    wrongly labelled texts with it: where labels are noisy take batch_all_triplet or batch_semi_hard_triplet.
    """
    far, near, metrics = _hardest(embeddings, class_id, seqs, distance)
    losses = relu(far - near + margin)
    return losses, {"active": stats.mean(losses > 0), **metrics}


@register_loss(
    "batch_hard_soft_margin_triplet",
    per="datum",
    couples="batch",
    reduction="mean",
    source=f"{HERMANS} section 2, soft margin",
    groups=_one_per_anchor,
    differs={"Sentence Transformers 6.2.0": f"BatchHardSoftMarginTripletLoss: {STRAYS}."},
    laws=LAWS,
)
def batch_hard_soft_margin_triplet(
    embeddings: Tensor, class_id: IdPerDatum, seqs: Seqs, *, distance: Distance = "euclidean"
) -> tuple[Tensor, dict[str, Stat]]:
    """log(1 + exp(max_p d(anchor, p) - min_n d(anchor, n))): batch_hard_triplet without a margin to choose.

    embeddings   [N, D]  unitless  texts in any order
    class_id     [N]     unitless  integers: the class of each text
    returns      [A]     nats      one loss per text that has both another of its class and one of another class

    A triplet keeps a gradient however far apart its two distances are. Metrics are those of batch_hard_triplet.

    When to use: As batch_hard_triplet, when no margin is known: texts are pulled and pushed on without end, which wants a
    low learning rate.
    """
    far, near, metrics = _hardest(embeddings, class_id, seqs, distance)
    return softplus(far - near), metrics


@register_loss(
    "batch_all_triplet",
    per="batch",
    couples="batch",
    source=f"{HERMANS} section 2: batch all, averaged over the terms that are not 0",
    differs={
        "Sentence Transformers 6.2.0": "BatchAllTripletLoss: the same formula, with 1e-16 added to the number of terms."
    },
    laws=LAWS,
)
def batch_all_triplet(
    embeddings: Tensor, class_id: IdPerDatum, *, margin: NonNegative = 5.0, distance: Distance = "euclidean"
) -> tuple[Tensor, dict[str, Stat]]:
    """max(0, margin + d(a, p) - d(a, n)), averaged over all triplets of the batch in which it is above 0.

    embeddings   [N, D]  unitless  texts in any order
    class_id     [N]     unitless  integers: the class of each text
    returns      []      unitless  one loss per batch

    d is the euclidean distance, or 1 - cosine. Only what still violates the margin is averaged, so the loss stays about as
    large while ever fewer triplets do: `active`, their share, is what must fall. A batch without any triplet has loss 0.

    When to use: Texts with classes whose labels are noisy: no single triplet decides.
    """
    positive, negative = _relations(class_id)
    apart = all_distances(embeddings, distance)
    limits = apart + margin  # of an anchor and a positive: nearer negatives violate the margin
    nearest = _nearest_first(apart, negative)
    violating = torch.where(positive, torch.searchsorted(nearest.detach(), limits.detach()), 0)
    sums = pad(nearest.masked_fill(nearest.isinf(), 0).cumsum(1), (1, 0)).gather(1, violating)
    triplets = positive.sum(1) @ negative.sum(1)
    return (violating * limits - sums).sum() / violating.sum().clamp(min=1), {
        "active": Stat("mean", violating.sum().double(), triplets.double()),
        "triplets": stats.sum(triplets),
    }


def _nearest_first(apart: Tensor, negative: Tensor) -> Tensor:
    """[N, N] distances to texts of other classes in ascending order, infinite behind the last."""
    return apart.masked_fill(~negative, torch.inf).sort(1).values.contiguous()


@register_loss(
    "batch_semi_hard_triplet",
    per="datum",
    couples="batch",
    reduction="mean",
    source="Schroff, Kalenichenko & Philbin 2015, FaceNet, arXiv:1503.03832 section 3.2",
    groups=_one_per_pair,
    differs={
        "Sentence Transformers 6.2.0": "BatchSemiHardTripletLoss: the same formula where each batch has two classes."
    },
    laws=LAWS,
)
def batch_semi_hard_triplet(
    embeddings: Tensor, class_id: IdPerDatum, seqs: Seqs, *, margin: NonNegative = 5.0, distance: Distance = "euclidean"
) -> tuple[Tensor, dict[str, Stat]]:
    """max(0, margin + d(a, p) - d(a, n)), where n is the nearest text of another class beyond p; else the farthest one.

    embeddings   [N, D]  unitless  texts in any order
    class_id     [N]     unitless  integers: the class of each text
    returns      [P]     unitless  one loss per anchor a and other text p of its class, where there is another class

    d is the euclidean distance, or 1 - cosine. No gradient passes through the choice of n. `semi_hard` is the share of
    pairs for which some text of another class is farther than p.

    When to use: As batch_hard_triplet, where the hardest negatives make embeddings collapse early in training.
    """
    positive, negative = _relations(class_id)
    apart = all_distances(embeddings, distance)
    pairs = positive & negative.any(1, keepdim=True)
    nearest = pad(_nearest_first(apart, negative), (0, 1), value=torch.inf)
    farther = nearest.gather(1, torch.searchsorted(nearest.detach(), apart.detach(), right=True).clamp(max=len(apart)))
    farthest = apart.masked_fill(~negative, -torch.inf).amax(1) if len(apart) else apart.sum(1)
    places = seqs.chosen(pairs.flatten())
    near, farther = apart.flatten()[places], farther.flatten()[places]  # [P]
    has_farther = farther.isfinite()
    others = torch.where(has_farther, farther, farthest[places // max(1, len(apart))])
    losses = relu(near - others + margin)
    return losses, {"active": stats.mean(losses > 0), "semi_hard": stats.mean(has_farther)}
