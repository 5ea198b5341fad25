"""Ranking losses in NumPy, one list and one pair of candidates at a time, from the papers' formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .complex_step import log_sigmoid, logsumexp, sigmoid
from .rows import Reference, Row

Array = np.ndarray
#: A complex number, or an array of one.
Number = Any


def score(row: Row) -> Number:
    """The value at the last token that counts."""
    return row["values"][-1]


def lists(rows: Sequence[Row]) -> list[list[int]]:
    """Which rows belong together, by their id."""
    return [
        [i for i, row in enumerate(rows) if row["group"] == group] for group in dict.fromkeys(r["group"] for r in rows)
    ]


def each(of_list: Callable[..., Number]) -> Reference:
    """A loss of a whole list, from one of its scores and labels."""

    def values(rows: Sequence[Row], **settings: Any) -> Array:
        members = [[rows[i] for i in own] for own in lists(rows)]
        return np.array([of_list([score(r) for r in own], [r["label"] for r in own], **settings) for own in members])

    return values


def rank_bce(rows: Sequence[Row], *, positive_weight: float) -> Array:
    return np.array(
        [
            -(positive_weight * r["label"] * log_sigmoid(score(r)) + (1 - r["label"]) * log_sigmoid(-score(r)))
            for r in rows
        ]
    )


def rank_mse(rows: Sequence[Row], *, activation: str) -> Array:
    answers = [sigmoid(score(r)) if activation == "sigmoid" else score(r) for r in rows]
    return np.array([(answer - r["label"]) ** 2 for answer, r in zip(answers, rows, strict=True)])


def log_shares(scores: Sequence[Number]) -> list[Number]:
    """log softmax."""
    whole = logsumexp(np.array(scores))
    return [s - whole for s in scores]


def rank_softmax(scores: Sequence[Number], labels: Sequence[float], *, scale: float) -> Number:
    if not any(labels):
        return 0
    logs = log_shares([scale * s for s in scores])
    return -sum(y * log for y, log in zip(labels, logs, strict=True)) / sum(labels)


def rank_mnrl(scores: Sequence[Number], labels: Sequence[float], *, scale: float, activation: str) -> Number:
    z = [scale * (sigmoid(s) if activation == "sigmoid" else s) for s in scores]
    negatives = [one for one, y in zip(z, labels, strict=True) if not y]
    costs = [-log_shares([one, *negatives])[0] for one, y in zip(z, labels, strict=True) if y]
    return sum(costs) / len(costs) if costs else 0


def listnet(scores: Sequence[Number], labels: Sequence[float]) -> Number:
    wanted = np.exp(np.array(log_shares(labels)))
    return -sum(p * log for p, log in zip(wanted, log_shares(scores), strict=True))


def drawn(scores: Sequence[Number], labels: Sequence[float]) -> list[Number]:
    """-log of each candidate's chance among those that are no better."""
    return [
        logsumexp(np.array([t for t, other in zip(scores, labels, strict=True) if other <= y])) - s
        for s, y in zip(scores, labels, strict=True)
    ]


def list_mle(scores: Sequence[Number], labels: Sequence[float]) -> Number:
    return sum(drawn(scores, labels))


def plist_mle(scores: Sequence[Number], labels: Sequence[float]) -> Number:
    n = len(scores)
    places = [2 ** (n - i) - 1 for i in range(1, n + 1)]
    if not sum(places):
        return 0
    total: Number = 0
    for cost, y in zip(drawn(scores, labels), labels, strict=True):
        first, same = sum(other > y for other in labels), sum(other == y for other in labels)
        total += np.mean(places[first : first + same]) / sum(places) * cost
    return total


def mean_rank(numbers: Sequence[float], i: int) -> float:
    """1 for the highest; equal numbers share the mean of their ranks."""
    return sum(x > numbers[i] for x in numbers) + (sum(x == numbers[i] for x in numbers) + 1) / 2


def adr_mse(rows: Sequence[Row], *, alpha: float) -> Array:
    losses = np.zeros(len(rows), dtype=complex)
    for own in lists(rows):
        for i in own:
            rank = mean_rank([rows[j]["label"] for j in own], own.index(i))
            smooth = 1 + sum(sigmoid(alpha * (score(rows[j]) - score(rows[i]))) for j in own if j != i)
            losses[i] = (rank - smooth) ** 2 / math.log2(1 + rank)
    return losses


def rank_margin_mse(rows: Sequence[Row]) -> Array:
    losses = []
    for own in lists(rows):
        positives = [rows[i] for i in own if rows[i]["is_positive"]]
        negatives = [rows[i] for i in own if not rows[i]["is_positive"]]
        errors = [
            ((score(p) - score(n)) - (p["label"] - n["label"])) ** 2 for p in positives for n in negatives
        ]  # every pair by itself
        losses.append(sum(errors) / len(errors) if errors else 0)
    return np.array(losses)


def best_gain(labels: Sequence[float], k: int | None) -> float:
    """The discounted gain of the first k places of the best order."""
    best = sorted((max(y, 0) for y in labels), reverse=True)[:k]
    return sum((2**y - 1) / math.log2(2 + i) for i, y in enumerate(best))


def lambda_loss(
    scores: Sequence[Number],
    labels: Sequence[float],
    *,
    weighting: str = "none",
    sigma: float,
    mu: float = 0.0,
    k: int | None,
    log_base: str,
) -> Number:
    now = [float(np.real(s)) for s in scores]
    ranks = [mean_rank(now, i) for i in range(len(now))]
    best = best_gain(labels, k)
    gain = [(2 ** max(y, 0) - 1) / best if best else 0.0 for y in labels]
    total: Number = 0
    for i in range(len(scores)):
        for j in range(len(scores)):
            if (weighting != "ndcg1" and labels[i] <= labels[j]) or (k is not None and min(ranks[i], ranks[j]) > k):
                continue
            gap, stake = max(abs(ranks[i] - ranks[j]), 1), abs(gain[i] - gain[j])
            swap = abs(1 / math.log2(1 + ranks[i]) - 1 / math.log2(1 + ranks[j])) * stake
            near = abs(1 / math.log2(1 + gap) - 1 / math.log2(2 + gap)) * stake
            weight = {
                "none": 1.0,
                "ndcg1": gain[i] / math.log2(1 + ranks[i]),
                "ndcg2": near,
                "lambda_rank": swap,
                "ndcg2_plus": mu * near + swap,
            }[weighting]
            total += weight * -log_sigmoid(sigma * (scores[i] - scores[j]))
    return total / (math.log(2) if log_base == "binary" else 1)


REFERENCES: dict[str, Reference] = {
    "rank_bce": rank_bce,
    "rank_mse": rank_mse,
    "rank_softmax": each(rank_softmax),
    "rank_mnrl": each(rank_mnrl),
    "rank_margin_mse": rank_margin_mse,
    "ranknet": each(lambda_loss),
    "lambda_loss": each(lambda_loss),
    "listnet": each(listnet),
    "list_mle": each(list_mle),
    "plist_mle": each(plist_mle),
    "adr_mse": adr_mse,
}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "rank_bce": [{"positive_weight": 3.0}],
    "rank_mse": [{"activation": "sigmoid"}],
    "rank_softmax": [{"scale": 2.5}],
    "rank_mnrl": [{"activation": "none", "scale": 1.5}],
    "ranknet": [{"sigma": 2.0, "k": 1, "log_base": "natural"}],
    "lambda_loss": [
        {"weighting": "none"},
        {"weighting": "ndcg1", "sigma": 0.5},
        {"weighting": "ndcg2"},
        {"weighting": "lambda_rank", "log_base": "natural"},
        {"weighting": "lambda_rank", "k": 1},
        {"weighting": "ndcg2_plus", "mu": 2.0, "k": 2},
    ],
    "adr_mse": [{"alpha": 3.0}],
}
