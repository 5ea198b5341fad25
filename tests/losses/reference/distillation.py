"""Distillation losses in NumPy, one position at a time, from the papers' formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .complex_step import clip, stop, where
from .rows import MAX_LOG_RATIO, Row

Array = np.ndarray
#: (student, teacher) probabilities to nats.
Divergence = Callable[[Array, Array], complex]


def _kl(p: Array, q: Array) -> complex:
    """KL(p || q) of positive vectors."""
    return np.sum(p * (np.log(p) - np.log(q)))


def _jsd(beta: float) -> Divergence:
    def of(s: Array, t: Array) -> complex:
        m = (1 - beta) * s + beta * t
        return beta * _kl(t, m) + (1 - beta) * _kl(s, m)

    return of


def _forward(s: Array, t: Array) -> complex:
    return _kl(t, s)


def _reverse(s: Array, t: Array) -> complex:
    return _kl(s, t)


def _prepared(p: Array, tail: str) -> Array:
    if tail == "renormalise":
        return p / p.sum()
    if tail == "bin":
        rest = 1 - p.sum()
        return np.append(p, 1e-7 if rest.real < 1e-7 else rest)
    return p


def _over_candidates(rows: Sequence[Row], divergence: Divergence, tail: str, temperature: float = 1.0) -> list[Array]:
    values = []
    for row in rows:
        divergences = []
        for student, teacher in zip(row["logprobs"], row["teacher_logprobs"], strict=True):
            here = np.isfinite(teacher.real)
            s, t = (np.exp(x[here] / temperature) for x in (student, teacher))
            divergences.append(divergence(_prepared(s, tail), _prepared(t, tail)))
        values.append(np.array(divergences))
    return values


def topk_forward_kl(rows: Sequence[Row], *, tail: str) -> list[Array]:
    """Σ t log(t / s)."""
    return _over_candidates(rows, _forward, tail)


def topk_reverse_kl(rows: Sequence[Row], *, tail: str) -> list[Array]:
    """Σ s log(s / t)."""
    return _over_candidates(rows, _reverse, tail)


def topk_jsd(rows: Sequence[Row], *, beta: float, tail: str) -> list[Array]:
    """beta KL(t || m) + (1 - beta) KL(s || m)."""
    return _over_candidates(rows, _jsd(beta), tail)


def gkd(rows: Sequence[Row], *, beta: float, temperature: float, tail: str) -> list[Array]:
    """The same, with a KL at either end."""
    divergence = {0.0: _forward, 1.0: _reverse}.get(beta, _jsd(beta))
    return _over_candidates(rows, divergence, tail, temperature)


def sdft(rows: Sequence[Row]) -> list[Array]:
    """-Σ t log s, the teacher renormalised."""
    values = []
    for row in rows:
        entropies = []
        for student, teacher in zip(row["logprobs"], row["teacher_logprobs"], strict=True):
            t = np.exp(np.real(teacher))
            entropies.append(-sum(t[k] / t.sum() * student[k] for k in range(len(t)) if t[k] > 0))
        values.append(np.array(entropies))
    return values


def sampled_reverse_kl(rows: Sequence[Row], *, scale: float, ratio_log_cap: float) -> list[Array]:
    """-r scale (log t - log q)."""
    return [
        -np.exp(clip(row["logprobs"] - row["sampling_logprobs"], -ratio_log_cap, ratio_log_cap))
        * scale
        * (row["teacher_logprobs"] - row["sampling_logprobs"])
        for row in rows
    ]


def ref_kl(rows: Sequence[Row], *, max_drop: float, trust_coefficient: float) -> list[Array]:
    """-r (log t - log p), where the token has not lost more than max_drop; plus a penalty on the squared log-ratio."""
    values = []
    for row in rows:
        p, q = row["logprobs"], row["sampling_logprobs"]
        ratio = np.exp(clip(p - q, -MAX_LOG_RATIO, MAX_LOG_RATIO))
        surrogate = -ratio * (row["teacher_logprobs"] - stop(p))
        fallen = np.exp(np.real(q)) - np.exp(np.real(p))
        values.append(where(fallen > max_drop, 0, surrogate) + trust_coefficient * (p - q) ** 2)
    return values


REFERENCES = {
    "gkd": gkd,
    "ref_kl": ref_kl,
    "sampled_reverse_kl": sampled_reverse_kl,
    "sdft": sdft,
    "topk_forward_kl": topk_forward_kl,
    "topk_jsd": topk_jsd,
    "topk_reverse_kl": topk_reverse_kl,
}
TAILS = [{"tail": "drop"}, {"tail": "renormalise"}]
#: Settings, beside the defaults, under which each loss is compared.
VARIANTS: dict[str, list[dict]] = {
    "gkd": [
        {"beta": 0.0},
        {"beta": 1.0, "tail": "renormalise"},
        {"beta": 0.25, "tail": "renormalise", "temperature": 0.9},
        {"tail": "drop"},
    ],
    "ref_kl": [{"max_drop": 0.05}, {"trust_coefficient": 0.5}],
    "sampled_reverse_kl": [{"scale": 0.25}, {"ratio_log_cap": 1.5}],
    "topk_forward_kl": TAILS,
    "topk_jsd": [*TAILS, {"beta": 0.1}, {"beta": 0.75, "tail": "renormalise"}],
    "topk_reverse_kl": TAILS,
}
