"""Losses of value functions, and auxiliary losses, in NumPy, one row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np

from lossbook.losses.math.ratios import KLEstimator

from .complex_step import absolute, clip, maximum, stop
from .rows import MAX_LOG_RATIO, Row

Array = np.ndarray


def value_clip(rows: Sequence[Row], *, clip: float) -> list[Array]:
    """½ max((v - R)², (clamp(v, v_old ± clip) - R)²)."""
    values = []
    for row in rows:
        v, low, high = row["values"], row["old_values"] - clip, row["old_values"] + clip
        held = np.where(v.real < low, low, np.where(v.real > high, high, v))
        values.append(0.5 * maximum((v - row["returns"]) ** 2, (held - row["returns"]) ** 2))
    return values


def value_mse(rows: Sequence[Row]) -> list[Array]:
    """½ (v - R)²."""
    return [0.5 * (row["values"] - row["returns"]) ** 2 for row in rows]


def value_huber(rows: Sequence[Row], *, delta: float) -> list[Array]:
    """½ e², or beyond delta the line that goes on from there."""
    values = []
    for row in rows:
        e = row["values"] - row["returns"]
        values.append(np.where(np.abs(e.real) <= delta, 0.5 * e**2, delta * (absolute(e) - 0.5 * delta)))
    return values


def entropy_bonus(rows: Sequence[Row], *, coefficient: float) -> list[Array]:
    """-coefficient H."""
    return [-coefficient * row["entropy"] for row in rows]


def sampled_entropy_bonus(rows: Sequence[Row], *, coefficient: float) -> list[Array]:
    """coefficient sg(log p) log p."""
    return [coefficient * stop(row["logprobs"]) * row["logprobs"] for row in rows]


def reference_kl(rows: Sequence[Row], *, estimator: str) -> list[Array]:
    """One estimate of KL(policy || reference) per token; `+` has the gradient of k2."""
    return [_estimate(row["logprobs"], row["ref_logprobs"], estimator) for row in rows]


def sampler_kl(rows: Sequence[Row], *, estimator: str) -> list[Array]:
    """One estimate of KL(policy || sampler) per token; k3 weighed by the ratio where it is corrected."""
    values = []
    for row in rows:
        p, q = row["logprobs"], row["sampling_logprobs"]
        if estimator == "k3-corrected":
            values.append(_estimate(p, q, "k3") * np.exp(clip(p - q, -MAX_LOG_RATIO, MAX_LOG_RATIO)))
        else:
            values.append(_estimate(p, q, estimator))
    return values


def _estimate(p: Array, f: Array, estimator: str) -> Array:
    if estimator.endswith("+"):
        k2 = _estimate(p, f, "k2")
        return stop(_estimate(p, f, estimator[:-1])) + k2 - stop(k2)
    if estimator == "k3-corrected":
        return _estimate(p, f, "k3") * np.exp(p - stop(p))
    d = p - f
    if estimator == "k3":
        held = clip(d, -MAX_LOG_RATIO, MAX_LOG_RATIO)
        return np.exp(-held) + held - 1
    return {"k1": d, "k2": d**2 / 2, "abs": absolute(d)}[estimator]


REFERENCES = {
    "entropy_bonus": entropy_bonus,
    "reference_kl": reference_kl,
    "sampled_entropy_bonus": sampled_entropy_bonus,
    "sampler_kl": sampler_kl,
    "value_clip": value_clip,
    "value_huber": value_huber,
    "value_mse": value_mse,
}
#: Settings, beside the defaults, under which each loss is compared.
VARIANTS: dict[str, list[dict]] = {
    "entropy_bonus": [{"coefficient": 2.0}],
    "reference_kl": [{"estimator": estimator} for estimator in get_args(KLEstimator)],
    "sampled_entropy_bonus": [{"coefficient": 2.0}],
    "sampler_kl": [{"estimator": estimator} for estimator in get_args(KLEstimator)],
    "value_clip": [{"clip": 1.5}],
    "value_huber": [{"delta": 0.25}, {"delta": 3.0}],
}
