"""Embedding losses in NumPy, one pair of texts at a time, from the papers' formulas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .complex_step import absolute, log_sigmoid, logsumexp, maximum, normalised
from .rows import Row

Array = np.ndarray


def vectors(rows: Sequence[Row], blocks: int) -> list[Array]:
    """The embeddings in blocks of equal size."""
    size = len(rows) // blocks
    return [np.array([row["embeddings"] for row in rows[k * size : (k + 1) * size]]) for k in range(blocks)]


def cos(a: Array, b: Array) -> complex:
    """a · b / (|a| |b|)."""
    return np.sum(normalised(a) * normalised(b))


def apart(a: Array, b: Array, distance: str) -> complex:
    """Length of the difference, or 1 - cosine."""
    return np.sqrt(np.sum((a - b) ** 2)) if distance == "euclidean" else 1 - cos(a, b)


def twins(rows: Sequence[Row], query: int, candidate: int) -> bool:
    """Whether two datums carry the same document id."""
    first, second = rows[query].get("document_id"), rows[candidate].get("document_id")
    return first is not None and bool(first == second)


def found_among(rows: Sequence[Row], query: int, own: int, candidates: Sequence[int], scale: float) -> complex:
    """-log of the softmax share of `own` among `candidates`."""
    scores = [scale * cos(rows[query]["embeddings"], rows[c]["embeddings"]) for c in candidates]
    return logsumexp(np.array(scores)) - scores[list(candidates).index(own)]


def info_nce(rows: Sequence[Row], *, temperature: float, num_extra_negatives: int) -> Array:
    """Queries among documents and extras, then documents among queries."""
    pairs = (len(rows) - num_extra_negatives) // 2
    losses = []
    for i in range(pairs):
        among = [j for j in range(pairs, len(rows)) if j == pairs + i or not twins(rows, i, j)]
        losses.append(found_among(rows, i, pairs + i, among, 1 / temperature))
    for i in range(pairs):
        among = [j for j in range(pairs) if j == i or not twins(rows, j, pairs + i)]
        losses.append(found_among(rows, pairs + i, i, among, 1 / temperature))
    return np.array(losses)


def ntxent(rows: Sequence[Row], *, temperature: float) -> Array:
    """A view among all others."""
    count = len(rows)
    others = [[j for j in range(count) if j != i] for i in range(count)]
    return np.array([found_among(rows, i, (i + count // 2) % count, others[i], 1 / temperature) for i in range(count)])


def siglip(rows: Sequence[Row], *, scale: float, bias: float) -> Array:
    """Every query with every document, one yes or no each."""
    queries, documents = vectors(rows, 2)
    losses = []
    for i, query in enumerate(queries):
        total = 0j
        for j, document in enumerate(documents):
            sign = 1 if i == j else -1
            if i == j or not twins(rows, i, len(queries) + j):
                total -= log_sigmoid(sign * (scale * cos(query, document) + bias))[()]
        losses.append(total)
    return np.array(losses)


def triplet(rows: Sequence[Row], *, margin: float, distance: str) -> Array:
    """max(0, d(a, p) - d(a, n) + margin)."""
    excess = [apart(a, p, distance) - apart(a, n, distance) + margin for a, p, n in zip(*vectors(rows, 3), strict=True)]
    return maximum(np.zeros(len(excess)), np.array(excess))


def margin_mse(rows: Sequence[Row], *, similarity: str) -> Array:
    """(student's margin - teacher's)²."""
    size = len(rows) // 3
    losses = []
    for i, (q, p, n) in enumerate(zip(*vectors(rows, 3), strict=True)):
        student = cos(q, p) - cos(q, n) if similarity == "cosine" else np.sum(q * p) - np.sum(q * n)
        teacher = rows[size + i]["teacher_score"] - rows[2 * size + i]["teacher_score"]
        losses.append((student - teacher) ** 2)
    return np.array(losses)


def contrastive_pairs(rows: Sequence[Row], *, margin: float, distance: str) -> Array:
    """½ d² of like, ½ max(0, margin - d)² of unlike pairs."""
    losses = []
    for a, b in zip(rows[0::2], rows[1::2], strict=True):
        d, y = apart(a["embeddings"], b["embeddings"], distance), a["label"]
        short = maximum(np.zeros(1), np.array([margin - d]))[0]
        losses.append((y * d**2 + (1 - y) * short**2) / 2)
    return np.array(losses)


def cosine_similarity(rows: Sequence[Row]) -> Array:
    """(cosine - label)²."""
    return np.array(
        [(cos(a["embeddings"], b["embeddings"]) - a["label"]) ** 2 for a, b in zip(rows[0::2], rows[1::2], strict=True)]
    )


def in_order(similarity: Sequence[complex], labels: Sequence[float], scale: float) -> complex:
    """log(1 + Σ exp(scale (s_i - s_j))) over label_i < label_j."""
    terms = [0j]
    for s_i, y_i in zip(similarity, labels, strict=True):
        terms += [scale * (s_i - s_j) for s_j, y_j in zip(similarity, labels, strict=True) if y_i < y_j]
    return logsumexp(np.array(terms))


def cosent(rows: Sequence[Row], *, scale: float) -> complex:
    """Over cosines."""
    similarity = [cos(a["embeddings"], b["embeddings"]) for a, b in zip(rows[0::2], rows[1::2], strict=True)]
    return in_order(similarity, [float(row["label"]) for row in rows[0::2]], scale)


def angle(rows: Sequence[Row], *, scale: float) -> complex:
    """Over |Σ Re + Im| of z conj(w) for the unit vectors read as complex numbers, here as pairs (re, im)."""
    similarity = []
    for first, second in zip(rows[0::2], rows[1::2], strict=True):
        total = 0j
        z, w = normalised(first["embeddings"]), normalised(second["embeddings"])
        half = (len(z) + 1) // 2
        for k in range(half):
            a, c = z[k], w[k]
            b, d = (z[half + k], w[half + k]) if half + k < len(z) else (0, 0)
            total += (a * c + b * d) + (b * c - a * d)
        similarity.append(absolute(np.array([total]))[0])
    return in_order(similarity, [float(row["label"]) for row in rows[0::2]], scale)


REFERENCES = {
    "angle": angle,
    "contrastive_pairs": contrastive_pairs,
    "cosent": cosent,
    "cosine_similarity": cosine_similarity,
    "info_nce": info_nce,
    "margin_mse": margin_mse,
    "ntxent": ntxent,
    "siglip": siglip,
    "triplet": triplet,
}
#: Settings, beside the defaults, under which each loss is compared.
VARIANTS: dict[str, list[dict]] = {
    "angle": [{"scale": 1.0}],
    "contrastive_pairs": [{"margin": 1.5}, {"distance": "euclidean", "margin": 2.0}, {"margin": 0.0}],
    "cosent": [{"scale": 1.0}],
    "info_nce": [{"temperature": 1.0}, {"num_extra_negatives": 1, "temperature": 0.3}],
    "margin_mse": [{"similarity": "cosine"}],
    "ntxent": [{"temperature": 1.0}],
    "siglip": [{"scale": 1.0, "bias": 0.0}, {"bias": -5.0}],
    "triplet": [{"margin": 0.25}, {"distance": "cosine", "margin": 0.1}, {"margin": 5.0}],
}
