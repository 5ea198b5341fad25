"""Losses of a teacher with another vocabulary in NumPy, one position at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .complex_step import absolute, stop
from .rows import Row

Array = np.ndarray


def _whole(row: Row, key: str, span_key: str, temperature: float) -> list[Array]:
    """Probabilities of each position at a temperature, times those of its span's other tokens."""
    rest = row.get(span_key)
    made = []
    for t, logprobs in enumerate(row[key]):
        powers = np.exp(logprobs / temperature)
        total = 1 if temperature == 1 else powers.sum()  # given as logprobs, they are what they are
        made.append(powers / total * (1 if rest is None else np.exp(rest[t])))
    return made


def _sorted_distance(first: Array, second: Array) -> Any:
    def descending(values: Array) -> list[Any]:
        ranked = sorted(values, key=lambda x: -np.real(x))
        # Equals are replaced by their mean, which shares the derivative.
        return [np.mean([y for y in ranked if np.real(y) == np.real(x)]) for x in ranked]

    longest = max(len(first), len(second))
    a, b = (descending(x) + [0] * (longest - len(x)) for x in (first, second))
    return sum(absolute(np.asarray(x - y)) for x, y in zip(a, b, strict=True))


def _both(row: Row, temperature: float) -> list[tuple[Array, Array]]:
    student = _whole(row, "vocab_logprobs", "span_logprobs", temperature)
    teacher = _whole(row, "teacher_vocab_logprobs", "teacher_span_logprobs", temperature)
    return [(s, stop(t)) for s, t in zip(student, teacher, strict=True)]


def uld(rows: Sequence[Row], *, temperature: float) -> list[Array]:
    """Σ |s_(k) - t_(k)|."""
    return [np.array([_sorted_distance(s, t) for s, t in _both(row, temperature)]) for row in rows]


def gold(rows: Sequence[Row], *, beta: float, matched_weight: float | None, temperature: float) -> list[Array]:
    """w D(s, t) of shared tokens + (1 - w) Σ |s_(k) - t_(k)| of the others."""
    values = []
    for row in rows:
        of_row = []
        for s, t in _both(row, temperature):
            width = len(s)
            shared = [v for v in range(width) if np.real(t[v]) > 0]
            divergence: Any = 0
            for v in shared:
                m = (1 - beta) * s[v] + beta * t[v]
                if beta == 0:
                    divergence += t[v] * np.log(t[v] / s[v])
                elif beta == 1:
                    divergence += s[v] * np.log(s[v] / t[v])
                else:
                    divergence += beta * t[v] * np.log(t[v] / m) + (1 - beta) * s[v] * np.log(s[v] / m)
            lonely = np.array([s[v] for v in range(width) if v not in shared])
            weight = len(shared) / (len(shared) + len(t) - width) if matched_weight is None else matched_weight
            of_row.append(weight * divergence + (1 - weight) * _sorted_distance(lonely, t[width:]))
        values.append(np.array(of_row))
    return values


REFERENCES = {"gold": gold, "uld": uld}
#: Settings, beside the defaults, under which each loss is compared.
VARIANTS: dict[str, list[dict]] = {
    "gold": [{"beta": 0.0}, {"beta": 1.0}, {"beta": 0.3, "temperature": 2.0, "matched_weight": 0.25}],
    "uld": [{"temperature": 0.5}],
}
