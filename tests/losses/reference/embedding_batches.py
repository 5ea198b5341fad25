"""Embedding losses over whole batches in NumPy, one text at a time: directions and hardness, guides, teachers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .complex_step import logsumexp, stop
from .embedding import cos
from .rows import Row

Array = np.ndarray


def dot(a: Array, b: Array) -> complex:
    """a · b."""
    return np.sum(a * b)


def vector(row: Row, key: str = "embeddings") -> Array:
    """One datum's vector."""
    return np.asarray(row[key])


def in_rows(rows: Sequence[Row], hard_negatives: int) -> tuple[int, list[tuple[int, int]]]:
    """B, and each document's place with the row it belongs to."""
    size = len(rows) // (2 + hard_negatives)
    return size, [(place, place % size) for place in range(size, len(rows))]


def multiple_negatives_ranking(
    rows: Sequence[Row],
    *,
    scale: float,
    num_hard_negatives: int,
    similarity: str,
    query_to_query: bool,
    document_to_query: bool,
    document_to_document: bool,
    partition: str,
    hardness: str,
    hardness_strength: float,
) -> Array:
    """Every candidate's score in a list, direction by direction."""
    size, documents = in_rows(rows, num_hard_negatives)
    alike = cos if similarity == "cosine" else dot
    ids = [row.get("document_id") for row in rows]

    def near(a: int, b: int) -> complex:
        return alike(vector(rows[a]), vector(rows[b]))

    def same(a: int, b: int) -> bool:
        return ids[a] is not None and bool(ids[a] == ids[b])

    losses = []
    for i in range(size):
        own = size + i
        first = []
        for place, row in documents:
            if place != own and same(i, place):
                continue
            kind = "positive" if place == own else "hard_negatives" if row == i else "in_batch_negatives"
            extra = kind != "positive" and hardness in (kind, "all_negatives")
            first.append(scale * near(i, place) + (hardness_strength * stop(near(i, place)) if extra else 0))
        directions = [first]
        if query_to_query:
            directions.append([scale * near(i, j) for j in range(size) if j != i and not same(i, j)])
        if document_to_query:
            directions.append([scale * near(own, j) for j in range(size) if j == i or not same(i, j)])
        if document_to_document:
            others = [place for place, row in documents if row != i and not same(i, place)]
            directions.append([scale * near(own, place) for place in others])
        if partition == "joint":
            total = logsumexp(np.array([score for scores in directions for score in scores]))
        else:
            total = sum(logsumexp(np.array(scores)) for scores in directions) / len(directions)
        losses.append(total - scale * near(i, own))
    return np.array(losses)


def gist(
    rows: Sequence[Row],
    *,
    temperature: float,
    margin: float,
    margin_strategy: str,
    num_hard_negatives: int,
    contrast_queries: bool,
    contrast_positives: bool,
) -> Array:
    """Each candidate is asked about at the guide's."""
    size, documents = in_rows(rows, num_hard_negatives)
    losses = []

    def guided(a: int, b: int) -> float:
        return float(np.real(cos(vector(rows[a], "guide_embedding"), vector(rows[b], "guide_embedding"))))

    for i in range(size):
        own = size + i
        bar = guided(i, own)
        bar -= margin * (1 if margin_strategy == "absolute" else abs(bar))
        pairs = [(i, place) for place, _ in documents if place != own]
        pairs = [
            (a, b)
            for a, b in pairs
            if rows[a].get("document_id") is None or rows[a]["document_id"] != rows[b]["document_id"]
        ]
        pairs += [(i, j) for j in range(size) if contrast_queries and j != i]
        pairs += [(own, size + j) for j in range(size) if contrast_positives and j != i]
        kept = [(i, own), *((a, b) for a, b in pairs if guided(a, b) <= bar)]
        scores = [cos(vector(rows[a]), vector(rows[b])) / temperature for a, b in kept]
        losses.append(logsumexp(np.array(scores)) - scores[0])
    return np.array(losses)


def embedding_distill(rows: Sequence[Row], *, distance: str) -> Array:
    """One distance a text."""
    losses = []
    for row in rows:
        own, teacher = vector(row), vector(row, "teacher_embedding")
        difference = own - teacher if np.any(np.real(own) != np.real(teacher)) else np.zeros(len(own))
        losses.append(
            1 - cos(own, teacher)
            if distance == "cosine"
            else np.sqrt(dot(difference, difference))
            if distance == "l2"
            else dot(difference, difference) / len(own)
        )
    return np.array(losses)


def kl(teacher: Sequence[float], student: Sequence[complex]) -> complex:
    """Σ p (log p - log q) of two softmaxes."""
    p = np.exp(np.array(teacher) - np.real(logsumexp(np.array(teacher))))
    log_q = np.array(student) - logsumexp(np.array(student))
    return np.sum(p * (np.log(p) - log_q))


def score_kl(
    rows: Sequence[Row],
    *,
    num_hard_negatives: int,
    similarity: str,
    temperature: float,
    teacher_temperature: float | None,
) -> Array:
    """A query's own documents under both."""
    size, _ = in_rows(rows, num_hard_negatives)
    alike = cos if similarity == "cosine" else dot
    losses = []
    for i in range(size):
        places = range(size + i, len(rows), size)
        teacher = [float(rows[place]["teacher_score"]) / (teacher_temperature or temperature) for place in places]
        student = [alike(vector(rows[i]), vector(rows[place])) / temperature for place in places]
        losses.append(kl(teacher, student) * temperature**2)
    return np.array(losses)


def in_batch_kl(
    rows: Sequence[Row], *, num_hard_negatives: int, temperature: float, teacher_temperature: float | None
) -> Array:
    """All documents under both."""
    size, documents = in_rows(rows, num_hard_negatives)
    losses = []
    for i in range(size):
        seen = [
            float(np.real(cos(vector(rows[i], "teacher_embedding"), vector(rows[place], "teacher_embedding"))))
            / (teacher_temperature or temperature)
            for place, _ in documents
        ]
        student = [cos(vector(rows[i]), vector(rows[place])) / temperature for place, _ in documents]
        losses.append(kl(seen, student))
    return np.array(losses)


def maxsim(rows: Sequence[Row], *, scale: float, num_hard_negatives: int, mean_over_query: bool) -> Array:
    """Each token of a query with the nearest token of a document."""
    size, documents = in_rows(rows, num_hard_negatives)
    losses = []

    def score(query: Row, document: Row) -> complex:
        total = 0j
        for token, weight in zip(query["token_embeddings"], query.weights, strict=True):
            total += weight * max((cos(token, other) for other in document["token_embeddings"]), key=np.real)
        return total / np.sum(query.weights) if mean_over_query else total

    for i in range(size):
        own, query = size + i, rows[i].get("document_id")
        kept = [p for p, _ in documents if p == own or query is None or rows[p]["document_id"] != query]
        scores = {place: scale * score(rows[i], rows[place]) for place in kept}
        losses.append(logsumexp(np.array(list(scores.values()))) - scores[own])
    return np.array(losses)


REFERENCES = {
    "embedding_distill": embedding_distill,
    "gist": gist,
    "in_batch_kl": in_batch_kl,
    "maxsim": maxsim,
    "multiple_negatives_ranking": multiple_negatives_ranking,
    "score_kl": score_kl,
}
#: Settings, beside the defaults, under which each loss is compared.
VARIANTS: dict[str, list[dict]] = {
    "embedding_distill": [{"distance": "l2"}, {"distance": "mse"}],
    "gist": [
        {"temperature": 1.0, "margin": 0.25},
        {"temperature": 0.5, "margin": 0.5, "margin_strategy": "relative", "contrast_queries": False},
        {"temperature": 0.3, "num_hard_negatives": 1, "contrast_positives": False},
    ],
    "in_batch_kl": [{"temperature": 1.0, "teacher_temperature": 0.5}, {"num_hard_negatives": 1}],
    "maxsim": [{"scale": 3.0, "num_hard_negatives": 1}, {"mean_over_query": True, "scale": 5.0}],
    "multiple_negatives_ranking": [
        {"scale": 1.0},
        {"num_hard_negatives": 1},
        {"num_hard_negatives": 2, "scale": 3.0, "similarity": "dot"},
        {"query_to_query": True, "document_to_query": True, "document_to_document": True},
        {"document_to_document": True, "num_hard_negatives": 1, "scale": 2.0},
        {"document_to_query": True, "partition": "per_direction", "scale": 3.0},
        {"hardness_strength": 9.0, "num_hard_negatives": 1},
        {"hardness": "hard_negatives", "hardness_strength": 5.0, "num_hard_negatives": 1},
        {"hardness": "all_negatives", "hardness_strength": 2.0, "num_hard_negatives": 1, "scale": 2.0},
    ],
    "score_kl": [
        {"similarity": "cosine", "temperature": 0.5},
        {"num_hard_negatives": 2, "temperature": 2.0, "teacher_temperature": 0.5},
    ],
}
