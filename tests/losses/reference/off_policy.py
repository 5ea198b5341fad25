"""Policy losses for samples far from the policy, in NumPy, one row at a time, from the papers' formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .complex_step import minimum, stop, where
from .policy import ratio, surrogate, weighted_mean
from .rows import MAX_LOG_RATIO, Row

Array = np.ndarray


def prime_ipo(rows: Sequence[Row], delta: float, kl_coefficient: float) -> list[Array]:
    """-K r A + kl_coefficient (p - q)², where K = 0 once the probability has moved by more than delta."""
    losses = []
    for row in rows:
        moved = np.abs(np.exp(np.real(row["logprobs"])) - np.exp(row["sampling_logprobs"]))
        keep = np.where(moved > delta, 0, 1)
        square = (row["logprobs"] - row["sampling_logprobs"]) ** 2
        losses.append(-keep * ratio(row) * row["advantages"] + kl_coefficient * square)
    return losses


def m2po(rows: Sequence[Row], threshold: float, only_pushed: bool) -> list[Array]:
    """-M r A: the largest (p - q)² are dropped, equal ones together, while the mean of the others is not below threshold."""
    squares: list[list[float]] = []
    for row in rows:
        p, q = (np.real(row[key]).astype(np.float32).astype(float) for key in ("logprobs", "sampling_logprobs"))
        squares.append([float(x) for x in (p - q) ** 2])
        if only_pushed:
            squares[-1] = [x if s > 0 else -1.0 for x, s in zip(squares[-1], (p - q) * row["advantages"], strict=True)]
    kept = sorted(x for own in squares for x in own if x >= 0)
    while kept and sum(kept) / len(kept) >= threshold:
        kept = [x for x in kept if x < kept[-1]]
    highest = kept[-1] if kept else -1.0
    # -1 stands for a token that does not count.
    masks = [np.array([x == -1.0 or x <= highest for x in own], dtype=float) for own in squares]
    return [-mask * ratio(row) * row["advantages"] for row, mask in zip(rows, masks, strict=True)]


def topr(
    rows: Sequence[Row],
    level: str,
    positive_low: float,
    positive_high: float,
    negative_low: float,
    negative_high: float,
) -> list[Array]:
    """-sg(w) A p with w = clip(r) by the bounds of the sign of A, r of the response or of the token."""
    losses = []
    for row in rows:
        log_ratio = np.real(row["logprobs"] - row["sampling_logprobs"])
        if level == "sequence":
            log_ratio = np.full(len(row), log_ratio.sum())
        r = np.exp(np.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))
        weight = np.where(
            row["advantages"] > 0, np.clip(r, positive_low, positive_high), np.clip(r, negative_low, negative_high)
        )
        losses.append(-weight * row["advantages"] * row["logprobs"])
    return losses


def fipo(
    rows: Sequence[Row],
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    half_life: float,
    weight_low: float,
    weight_high: float,
    safe_ratio: float | None,
) -> list[Array]:
    """sg(f) times the surrogate, with f = clip(exp(Σ_{k ≥ t} γ^(k-t) log r_k)) and γ = 2^(-1/half_life)."""
    gamma = 2 ** (-1 / half_life)
    losses = []
    for row in rows:
        advantage = row["advantages"]
        r = np.real(ratio(row))
        logs = [0.0 if dual_clip is not None and x > dual_clip else math.log(x) for x in r]
        weights = []
        for t in range(len(row)):
            future = sum(gamma ** (k - t) * logs[k] for k in range(t, len(row)))
            f = np.clip(np.exp(np.clip(future, -MAX_LOG_RATIO, MAX_LOG_RATIO)), weight_low, weight_high)
            if safe_ratio is not None and advantage[t] < 0 and r[t] > safe_ratio:
                f = np.clip(f, 0.8, 1.0)
            weights.append(f)
        value = surrogate(ratio(row), advantage, clip_low, clip_high)
        if dual_clip is not None:
            value = where(advantage < 0, minimum(value, -dual_clip * advantage), value)
        losses.append(stop(np.array(weights)) * value)
    return losses


def real(rows: Sequence[Row], temperature: float) -> list[Any]:
    """log(1 + Σ_wrong exp(s/τ)) + log(1 + Σ_right exp(-s/τ)) a group, s the mean of p - q; 0 where one kind is missing."""
    groups: dict[float, tuple[list[Any], list[Any]]] = {}
    for row in rows:
        right, wrong = groups.setdefault(float(row["group"]), ([], []))
        s = weighted_mean(row, row["logprobs"] - row["sampling_logprobs"]) / temperature
        (right if weighted_mean(row, row["advantages"]) > 0 else wrong).append(s)
    return [
        log1p_sum_exp(wrong) + log1p_sum_exp([-s for s in right]) if right and wrong else 0.0
        for right, wrong in groups.values()
    ]


def log1p_sum_exp(values: list[Any]) -> Any:
    """log(1 + Σ exp(x)) without overflow."""
    highest = max(0.0, *(np.real(x) for x in values))
    return highest + np.log(np.exp(-highest) + sum(np.exp(x - highest) for x in values))


REFERENCES: dict[str, Callable[..., Any]] = {
    "fipo": fipo,
    "m2po": m2po,
    "prime_ipo": prime_ipo,
    "real": real,
    "topr": topr,
}
#: Settings, beside the defaults, under which each loss is compared.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "fipo": [
        {
            "clip_low": 0.5,
            "clip_high": 2.5,
            "half_life": 1.5,
            "weight_low": 0.5,
            "weight_high": 3.0,
            "safe_ratio": None,
        },
        {
            "clip_high": 3.0,
            "dual_clip": 4.0,
            "half_life": 4.0,
            "weight_low": 0.0,
            "weight_high": 1e30,
            "safe_ratio": 1.5,
        },
    ],
    "m2po": [{"threshold": 0.5}, {"threshold": 0.5, "only_pushed": True}, {"only_pushed": True}],
    "prime_ipo": [{"delta": 0.05}, {"delta": 0.1, "kl_coefficient": 0.5}],
    "real": [{"temperature": 0.1}, {"temperature": 4.0}],
    "topr": [
        {"level": "token"},
        {"positive_low": 0.5, "positive_high": 1.5, "negative_low": 0.25, "negative_high": 2.0},
        {"level": "token", "positive_low": 0.0, "positive_high": 2.0, "negative_high": 2.0},
    ],
}
