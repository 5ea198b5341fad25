"""Embedding losses over classes, and regularizers, in NumPy, one text at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .complex_step import absolute, logsumexp, maximum, normalised
from .embedding import apart
from .embedding_batches import dot, vector
from .rows import Row

Array = np.ndarray


def triplets(rows: Sequence[Row], distance: str) -> list[tuple[list[complex], list[complex]]]:
    """Of each text, its distances to others of its class and to those of other classes."""
    found = []
    for i, row in enumerate(rows):
        away = [(other, apart(vector(row), vector(other), distance)) for j, other in enumerate(rows) if j != i]
        alike = [d for other, d in away if other["class_id"] == row["class_id"]]
        found.append((alike, [d for other, d in away if other["class_id"] != row["class_id"]]))
    return [(alike, others) for alike, others in found if alike and others]


def hinge(value: complex) -> complex:
    """max(0, x)."""
    return maximum(np.zeros(1), np.array([value]))[0]


def real(value: complex) -> float:
    """What is compared."""
    return float(np.real(value))


def batch_hard_triplet(rows: Sequence[Row], *, margin: float, distance: str) -> Array:
    """The farthest of the class, the nearest of others."""
    return np.array([hinge(margin + max(p, key=real) - min(n, key=real)) for p, n in triplets(rows, distance)])


def batch_hard_soft_margin_triplet(rows: Sequence[Row], *, distance: str) -> Array:
    """The same under log(1 + exp(x))."""
    return np.array(
        [logsumexp(np.array([0j, max(p, key=real) - min(n, key=real)])) for p, n in triplets(rows, distance)]
    )


def batch_all_triplet(rows: Sequence[Row], *, margin: float, distance: str) -> complex:
    """Every triplet above 0."""
    terms = [margin + p - n for alike, others in triplets(rows, distance) for p in alike for n in others]
    kept = [term for term in terms if real(term) > 0]
    return sum(kept) / len(kept) if kept else 0j


def batch_semi_hard_triplet(rows: Sequence[Row], *, margin: float, distance: str) -> Array:
    """For each of the class, the next farther one of another class; without one, the farthest."""
    losses = []
    for alike, others in triplets(rows, distance):
        for p in alike:
            farther = [n for n in others if real(n) > real(p)]
            chosen = min(farther, key=real) if farther else max(others, key=real)
            losses.append(hinge(margin + p - chosen))
    return np.array(losses)


def gor(
    rows: Sequence[Row],
    *,
    num_hard_negatives: int,
    mean_weight: float,
    second_moment_weight: float,
    aggregation: str,
) -> complex:
    """Each block's pairs of different texts."""
    size, values = len(rows) // (2 + num_hard_negatives), []
    for block in range(2 + num_hard_negatives):
        own = [normalised(vector(row)) for row in rows[block * size : (block + 1) * size]]
        cosines = [dot(a, b) for i, a in enumerate(own) for j, b in enumerate(own) if i != j] or [0j]
        first, second = sum(cosines) / len(cosines), sum(c * c for c in cosines) / len(cosines)
        values.append(mean_weight * first**2 + second_moment_weight * hinge(second - 1 / len(own[0])))
    return sum(values) / (len(values) if aggregation == "mean" else 1)


def flops(
    rows: Sequence[Row],
    *,
    num_hard_negatives: int,
    query_weight: float,
    document_weight: float,
    least_active: int,
) -> complex:
    """Σ_j (mean |x_j|)² of two sides."""
    size, total = len(rows) // (2 + num_hard_negatives), 0j
    for weight, side in ((query_weight, rows[:size]), (document_weight, rows[size:])):
        sums = np.zeros(len(vector(side[0])), dtype=complex)
        for row in side:
            own = vector(row)
            if np.count_nonzero(np.real(own)) > least_active:
                sums = sums + absolute(own)
        total += weight * np.sum((sums / len(side)) ** 2)
    return total


REFERENCES = {
    "batch_all_triplet": batch_all_triplet,
    "batch_hard_soft_margin_triplet": batch_hard_soft_margin_triplet,
    "batch_hard_triplet": batch_hard_triplet,
    "batch_semi_hard_triplet": batch_semi_hard_triplet,
    "flops": flops,
    "gor": gor,
}
_CLASSES: list[dict] = [{"margin": 0.25}, {"distance": "cosine", "margin": 0.1}]
#: Settings, beside the defaults, under which each loss is compared.
VARIANTS: dict[str, list[dict]] = {
    "batch_all_triplet": _CLASSES,
    "batch_hard_soft_margin_triplet": [{"distance": "cosine"}],
    "batch_hard_triplet": _CLASSES,
    "batch_semi_hard_triplet": _CLASSES,
    "flops": [{"query_weight": 0.0}, {"num_hard_negatives": 1, "document_weight": 0.5, "least_active": 2}],
    "gor": [
        {"mean_weight": 0.0, "aggregation": "sum"},
        {"second_moment_weight": 0.0, "num_hard_negatives": 1},
        {"second_moment_weight": 2.0, "mean_weight": 0.5},
    ],
}
