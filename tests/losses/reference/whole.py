"""Distillation over whole distributions in NumPy, one position at a time, from the papers' formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .complex_step import absolute, stop
from .rows import Array, Row


def _kl(p: Array, q: Array) -> complex:
    return sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True))


def _forward(s: Array, t: Array) -> complex:
    return _kl(t, s)


def _reverse(s: Array, t: Array) -> complex:
    return _kl(s, t)


def _jsd(s: Array, t: Array, beta: float = 0.5) -> complex:
    m = (1 - beta) * s + beta * t
    return beta * _kl(t, m) + (1 - beta) * _kl(s, m)


def _gkd(s: Array, t: Array, beta: float) -> complex:
    return _kl(t, s) if beta == 0 else _kl(s, t) if beta == 1 else _jsd(s, t, beta)


def _skewed_forward(s: Array, t: Array, alpha: float) -> complex:
    return _kl(t, alpha * t + (1 - alpha) * s)


def _skewed_reverse(s: Array, t: Array, alpha: float) -> complex:
    return _kl(s, alpha * s + (1 - alpha) * t)


def _adaptive(s: Array, t: Array, head: float) -> complex:
    """The head: tokens from the likeliest on until their probability is `head` or more."""
    chosen, mass = set(), 0.0
    for v in sorted(range(len(t)), key=lambda v: (-np.real(t[v]), v)):
        if mass >= head:
            break
        chosen.add(v)
        mass += float(np.real(t[v]))
    gaps = [abs(float(np.real(s[v] - t[v]))) for v in range(len(t))]
    share = sum(gaps[v] for v in chosen) / (sum(gaps) or 1.0)
    return share * _kl(t, s) + (1 - share) * _kl(s, t)


def _variation(s: Array, t: Array) -> complex:
    return sum(absolute(s - t)) / 2


def _rest(p: Array) -> complex:
    """1 - Σ p, held at 1e-7 or more, where it has no gradient."""
    rest = 1 - p.sum()
    return rest if np.real(rest) > 1e-7 else -np.expm1(-1e-7)


def _student_top(s: Array, t: Array, beta: float, tail: str, likeliest: int) -> complex:
    """Over the student's likeliest tokens; the others are one more token, are left out, or both sides are divided by their sums."""
    order = torch.tensor(np.real(s)).topk(min(likeliest, len(s))).indices.tolist()  # of equals those that torch takes
    p, q = s[order], t[order]
    if tail == "bin":
        p, q = (np.append(one, _rest(one)) for one in (p, q))
    elif tail == "renormalise":
        p, q = p / p.sum(), q / q.sum()
    return _gkd(p, q, beta)


def _at(logprobs: Array, temperature: float) -> Array:
    if temperature == 1:
        return np.exp(logprobs)
    powers = np.exp(logprobs / temperature)
    return powers / powers.sum()


def _over(divergence: Callable[..., complex]) -> Callable[..., list[Array]]:
    def reference(rows: Sequence[Row], *, temperature: float, **settings: Any) -> list[Array]:
        return [
            np.array(
                [
                    divergence(_at(s, temperature), _at(stop(t), temperature), **settings)
                    for s, t in zip(row["vocab_logprobs"], row["teacher_vocab_logprobs"], strict=True)
                ]
            )
            for row in rows
        ]

    return reference


REFERENCES = {
    "full_adaptive_kl": _over(_adaptive),
    "full_forward_kl": _over(_forward),
    "full_gkd": _over(_gkd),
    "full_jsd": _over(_jsd),
    "full_reverse_kl": _over(_reverse),
    "full_skewed_forward_kl": _over(_skewed_forward),
    "full_skewed_reverse_kl": _over(_skewed_reverse),
    "full_total_variation": _over(_variation),
    "student_topk_gkd": _over(_student_top),
}
#: Settings, beside the defaults, under which each loss is compared.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "full_adaptive_kl": [{"head": 0.9, "temperature": 2.0}],
    "full_forward_kl": [{"temperature": 0.7}],
    "full_gkd": [{"beta": 0.0}, {"beta": 1.0, "temperature": 2.0}, {"beta": 0.25, "temperature": 0.9}],
    "full_jsd": [{"beta": 0.1, "temperature": 2.0}],
    "full_reverse_kl": [{"temperature": 2.0}],
    "full_skewed_forward_kl": [{"alpha": 0.0}, {"alpha": 0.6, "temperature": 2.0}],
    "full_skewed_reverse_kl": [{"alpha": 0.0}, {"alpha": 0.6, "temperature": 2.0}],
    "full_total_variation": [{"temperature": 2.0}],
    "student_topk_gkd": [
        {"likeliest": 2, "tail": "renormalise", "temperature": 2.0},
        {"likeliest": 1, "beta": 0.0},
        {"likeliest": 2, "beta": 0.3},
        {"likeliest": 2, "beta": 0.5, "tail": "drop"},
    ],
}
