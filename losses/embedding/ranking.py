"""Losses over the order of pairs: of two pairs, the one with the higher label should be the more similar."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import stats
from ..batch.seqs import Seqs
from ..registry import register_loss
from ..spec.settings import Positive
from ..spec.spec import PerDatum
from ..stats import Stat
from .layout import cosine, normalized, pairs_in_one


@register_loss(
    "cosent",
    per="batch",
    source="Huang et al. 2024, CoSENT, doi:10.1109/TASLP.2024.3402087",
    groups=pairs_in_one("cosent"),
    laws={"scale_invariance": {}, "rotation_invariance": {}, "grad_cache_is_full_batch": {}},
)
def cosent(
    embeddings: Tensor, label: PerDatum, seqs: Seqs, *, scale: Positive = 20.0
) -> tuple[Tensor, dict[str, Stat]]:
    """log(1 + Σ exp(scale (cos_i - cos_j))) over all pairs i, j of the batch with label_i < label_j.

    embeddings   [N, D]  unitless  datums 2i and 2i+1 are a pair
    label        [N]     unitless  how similar the two are, on any scale: only the order matters
    returns      []      nats      one loss per batch

    A pair's label is that of its first datum; `labels_disagree` counts pairs whose second datum has another. Pairs with
    equal labels are not compared, so a batch with a single label has loss 0 and no gradient. The loss grows with the batch,
    about as the logarithm of the number of comparisons. `order_accuracy` is the share of comparisons in the right order.

    When to use: Pairs of texts with scores, when only their order matters. Often better than cosine_similarity.
    """
    first, second = seqs.pairs(embeddings)
    return _in_order(cosine(first, second), label, seqs, scale)


@register_loss(
    "angle",
    per="batch",
    source="Li & Li 2024, AoE, arXiv:2309.12871, the angle objective",
    groups=pairs_in_one("angle"),
    laws={"scale_invariance": {}, "grad_cache_is_full_batch": {}},
)
def angle(embeddings: Tensor, label: PerDatum, seqs: Seqs, *, scale: Positive = 20.0) -> tuple[Tensor, dict[str, Stat]]:
    """log(1 + Σ exp(scale (s_i - s_j))) over pairs with label_i < label_j, where s = |Σ_k Re + Im of a_k conj(b_k)|.

    embeddings   [N, D]  unitless  datums 2i and 2i+1 are a pair
    label        [N]     unitless  how similar the two are, on any scale: only the order matters
    returns      []      nats      one loss per batch

    CoSENT with a similarity whose gradient does not vanish where the cosine is near ±1. a and b are the normalized
    embeddings read as complex vectors: the first half of the coordinates is real, the second imaginary. The authors add it
    to `cosent` and an in-batch loss, as a mixture does. Labels and metrics are those of `cosent`.

    When to use: As cosent, when many pairs are nearly the same or nearly opposite, where the cosine has hardly a
    gradient.
    """
    first, second = (normalized(side) for side in seqs.pairs(embeddings))
    similarity = ((first * second).sum(-1) + (first * _quarter_turn(second)).sum(-1)).abs()
    return _in_order(similarity, label, seqs, scale)


def _quarter_turn(vectors: Tensor) -> Tensor:
    """[P, D], read as complex vectors, times i: (re, im) to (-im, re). For an odd D the last real part has no imaginary one."""
    width = vectors.shape[-1]
    real = (width + 1) // 2
    imaginary = pad(vectors[..., real:], (0, width % 2))
    return torch.cat([-imaginary, vectors[..., : width - real]], dim=-1)


def _in_order(similarity: Tensor, label: Tensor, seqs: Seqs, scale: float) -> tuple[Tensor, dict[str, Stat]]:
    """CoSENT's loss for similarities [P], and its metrics."""
    wanted, wanted_again = seqs.pairs(label)
    is_compared = wanted[:, None] < wanted[None, :]
    excess = similarity[:, None] - similarity[None, :]  # [P, P]: positive where the order is wrong
    terms = (scale * excess).masked_fill(~is_compared, -torch.inf).reshape(-1)
    return torch.cat([terms.new_zeros(1), terms]).logsumexp(0), {
        "order_accuracy": stats.mean(excess < 0, is_compared),
        "similarity": stats.mean(similarity),
        "labels_disagree": stats.sum(wanted != wanted_again),
    }
