"""Policy losses in NumPy, one row at a time, from the papers' formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .complex_step import absolute, clip, minimum, sigmoid, stop, where
from .rows import MAX_LOG_RATIO, Row

Array = np.ndarray


def ratio(row: Row) -> Array:
    """exp(p - q), the difference held within ±20."""
    return np.exp(clip(row["logprobs"] - row["sampling_logprobs"], -MAX_LOG_RATIO, MAX_LOG_RATIO))


def weighted_mean(row: Row, values: Array) -> Array:
    """Σ w x / Σ w."""
    return np.sum(row.weights * values) / np.sum(row.weights)


def surrogate(r: Array, advantage: Array, low: float, high: float) -> Array:
    """-min(r A, clip(r) A); the unclipped one where they are equal."""
    return -minimum(r * advantage, clip(r, low, high) * advantage)


def reinforce(rows: Sequence[Row]) -> list[Array]:
    """-A p."""
    return [-row["advantages"] * row["logprobs"] for row in rows]


def clipped(low: float, high: float) -> Callable[..., list[Array]]:
    """The clipped surrogate per token, with these defaults."""

    def loss(
        rows: Sequence[Row], clip_low: float = low, clip_high: float = high, dual_clip: float | None = None
    ) -> list[Array]:
        losses = []
        for row in rows:
            advantage = row["advantages"]
            value = surrogate(ratio(row), advantage, clip_low, clip_high)
            if dual_clip is not None:
                # The smaller of the two for punished tokens, the surrogate where they are equal.
                value = where(advantage < 0, minimum(value, -dual_clip * advantage), value)
            losses.append(value)
        return losses

    return loss


def cispo(rows: Sequence[Row], clip_low: float, clip_high: float) -> list[Array]:
    """-sg(clip(r)) A p."""
    return [-stop(clip(ratio(row), clip_low, clip_high)) * row["advantages"] * row["logprobs"] for row in rows]


def rollout_is(rows: Sequence[Row], clip_low: float, clip_high: float) -> list[Array]:
    """-sg(r 1[low < r < high]) A p."""
    losses = []
    for row in rows:
        r = stop(ratio(row))
        weight = np.array([x if clip_low < x.real < clip_high else 0 for x in r])
        losses.append(-weight * row["advantages"] * row["logprobs"])
    return losses


def dro(rows: Sequence[Row], beta: float) -> list[Array]:
    """-(A p - beta/2 (p - q)²)."""
    return [
        -(row["advantages"] * row["logprobs"] - 0.5 * beta * (row["logprobs"] - row["sampling_logprobs"]) ** 2)
        for row in rows
    ]


def dppo(
    rows: Sequence[Row], divergence: str, delta_low: float, delta_high: float, ratio_cap: float | None
) -> list[Array]:
    """-M r A, or -M sg(min(r, cap)) A p, where M = 0 once A pushes on a token whose probability has moved by more than delta."""
    losses = []
    for row in rows:
        now, before = np.exp(np.real(row["logprobs"])), np.exp(row["sampling_logprobs"])
        moved = np.abs(now - before)
        if divergence == "binary_kl":
            rest_now, rest_before = np.maximum(1 - now, 1e-8), np.maximum(1 - before, 1e-8)
            moved = before * np.log(before / now) + (1 - before) * np.log(rest_before / rest_now)
        keep = np.ones(len(now))
        for t, advantage in enumerate(row["advantages"]):
            if advantage > 0 and now[t] > before[t] and moved[t] > delta_high:
                keep[t] = 0
            if advantage < 0 and now[t] < before[t] and moved[t] > delta_low:
                keep[t] = 0
        weight = ratio(row) if ratio_cap is None else stop(minimum(ratio(row), ratio_cap)) * row["logprobs"]
        losses.append(-keep * weight * row["advantages"])
    return losses


def sapo(rows: Sequence[Row], temperature_positive: float, temperature_negative: float) -> list[Array]:
    """-(4/τ) σ(τ (r - 1)) A."""
    losses = []
    for row in rows:
        tau = np.where(row["advantages"] > 0, temperature_positive, temperature_negative)
        losses.append(-4 / tau * sigmoid(tau * (ratio(row) - 1)) * row["advantages"])
    return losses


def sequence_ratio(log_ratio: Array) -> Array:
    """exp of a response's log-ratio held within ±20."""
    return np.exp(clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def gspo(rows: Sequence[Row], clip_low: float, clip_high: float) -> list[Array]:
    """-min(s A, clip(s) A) with s = exp(mean (p - q)), one a response."""
    losses = []
    for row in rows:
        s = sequence_ratio(weighted_mean(row, row["logprobs"] - row["sampling_logprobs"]))
        losses.append(surrogate(s, weighted_mean(row, row["advantages"]), clip_low, clip_high))
    return losses


def luspo(rows: Sequence[Row], clip_low: float, clip_high: float) -> list[Array]:
    """GSPO times the length."""
    return [loss * row.weights.sum() for loss, row in zip(gspo(rows, clip_low, clip_high), rows, strict=True)]


def gspo_token(rows: Sequence[Row], clip_low: float, clip_high: float) -> list[Array]:
    """-min(s_t A_t, clip(s_t) A_t) with s_t = sg(s) exp(p - sg(p))."""
    losses = []
    for row in rows:
        log_ratio = row["logprobs"] - row["sampling_logprobs"]
        mask = row.get("sequence_ratio_mask")
        counted = log_ratio if mask is None else log_ratio[mask != 0]
        mean = stop(np.sum(counted)) / max(1, len(counted))
        s = sequence_ratio(mean + row["logprobs"] - stop(row["logprobs"]))
        losses.append(surrogate(s, row["advantages"], clip_low, clip_high))
    return losses


def rloo(rows: Sequence[Row], clip_low: float, clip_high: float) -> list[Array]:
    """-min(r A, clip(r) A) with r = exp(Σ p - Σ q), one a response."""
    losses = []
    for row in rows:
        r = sequence_ratio(np.sum(row.weights * (row["logprobs"] - row["sampling_logprobs"])))
        losses.append(surrogate(r, weighted_mean(row, row["advantages"]), clip_low, clip_high))
    return losses


def gmpo(rows: Sequence[Row], log_clip_low: float, log_clip_high: float) -> list[Array]:
    """-A exp(mean z') with z' = s min(s z, s clip(z)) and s the sign of A, one a response."""
    losses = []
    for row in rows:
        advantage = weighted_mean(row, row["advantages"])
        sign = np.sign(advantage)
        z = row["logprobs"] - row["sampling_logprobs"]
        held = sign * minimum(sign * z, sign * clip(z, -log_clip_low, log_clip_high))
        losses.append(-advantage * sequence_ratio(weighted_mean(row, held)))
    return losses


def vespo(
    rows: Sequence[Row], k_positive: float, lambda_positive: float, k_negative: float, lambda_negative: float
) -> list[Array]:
    """-sg(φ) A p with φ = exp(λ + k log W - λ W), W = exp(Σ (p - q)) within [1e-8, exp(20)]."""
    losses = []
    for row in rows:
        differences = clip(np.real(row["logprobs"] - row["sampling_logprobs"]), -MAX_LOG_RATIO, MAX_LOG_RATIO)
        w = np.exp(clip(np.sum(differences), np.log(1e-8), MAX_LOG_RATIO))
        weight = [
            np.exp(lambda_positive + k_positive * np.log(w) - lambda_positive * w)
            if advantage >= 0
            else np.exp(lambda_negative + k_negative * np.log(w) - lambda_negative * w)
            for advantage in row["advantages"]
        ]
        losses.append(-np.array(weight) * row["advantages"] * row["logprobs"])
    return losses


def covariances(rows: Sequence[Row]) -> list[Array]:
    """(A - mean A)(p - mean p) over all tokens of the batch."""
    advantages = np.concatenate([row["advantages"] for row in rows])
    logprobs = np.real(np.concatenate([row["logprobs"] for row in rows]))
    mean_advantage, mean_logprob = advantages.mean(), logprobs.mean()
    return [(row["advantages"] - mean_advantage) * (np.real(row["logprobs"]) - mean_logprob) for row in rows]


def lot(seed: int, numbers: Sequence[float]) -> int:
    """A 32-bit hash of float32 bit patterns, by Python's own integers."""
    state = seed % 2**32
    for number in numbers:
        state ^= int(np.array(number + 0.0, dtype=np.float32).view(np.uint32))
        for _ in range(2):
            state = ((state >> 16) ^ state) * 0x45D9F3B % 2**32
        state ^= state >> 16
    return state


def clip_cov(
    rows: Sequence[Row],
    clip_low: float,
    clip_high: float,
    share: float,
    covariance_low: float,
    covariance_high: float,
    seed: int,
) -> list[Array]:
    """The surrogate, but 0 for the drawn ones of the tokens whose covariance lies between the bounds."""
    losses = clipped(clip_low, clip_high)(rows)
    drawn: dict[int, list[tuple[int, int]]] = {}
    for i, (row, covariance) in enumerate(zip(rows, covariances(rows), strict=True)):
        for t, r in enumerate(np.real(ratio(row))):
            advantage = row["advantages"][t]
            is_clipped = (advantage > 0 and r > clip_high) or (advantage < 0 and r < clip_low)
            if covariance_low < covariance[t] < covariance_high and not is_clipped:
                key = lot(seed, [np.real(row["logprobs"][t]), row["sampling_logprobs"][t], advantage])
                drawn.setdefault(key, []).append((i, t))
    tokens = sum(len(row["advantages"]) for row in rows)
    number = max(1, int(share * tokens))
    gone: list[tuple[int, int]] = []
    for key in sorted(drawn):
        if len(gone) < number:
            gone += drawn[key]
    for i, t in gone:
        losses[i][t] = 0
    return losses


def kl_cov(rows: Sequence[Row], share: float, kl_coefficient: float) -> list[Array]:
    """-r A, plus a penalty |p - q| where the covariance is among the highest."""
    products = covariances(rows)
    flat = sorted(np.concatenate(products), reverse=True)
    least = flat[max(1, int(share * len(flat))) - 1]
    return [
        -ratio(row) * row["advantages"]
        + (own >= least) * kl_coefficient * absolute(row["logprobs"] - row["sampling_logprobs"])
        for row, own in zip(rows, products, strict=True)
    ]


REFERENCES: dict[str, Callable[..., Any]] = {
    "bnpo": clipped(0.8, 1.2),
    "cispo": cispo,
    "clip_cov": clip_cov,
    "dapo": clipped(0.8, 1.28),
    "dppo": dppo,
    "dr_grpo": clipped(0.8, 1.2),
    "dro": dro,
    "dual_clip": clipped(0.8, 1.2),
    "gmpo": gmpo,
    "gpg": reinforce,
    "gspo": gspo,
    "gspo_token": gspo_token,
    "kl_cov": kl_cov,
    "luspo": luspo,
    "reinforce": reinforce,
    "rloo": rloo,
    "rollout_is": rollout_is,
    "sapo": sapo,
    "vespo": vespo,
}
#: Settings, beside the defaults, under which each loss is compared.
WIDE = {"clip_low": 0.5, "clip_high": 2.5}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "bnpo": [WIDE],
    "cispo": [{"clip_low": 0.5, "clip_high": 1.5}],
    "clip_cov": [
        {**WIDE, "share": 0.25, "covariance_low": -2.0, "covariance_high": 3.0, "seed": 7},
        {"share": 1.0, "covariance_low": 0.0},
    ],
    "dapo": [WIDE, {"dual_clip": 3.0}],
    "dppo": [
        {"delta_low": 0.05, "delta_high": 0.1},
        {"divergence": "binary_kl", "delta_low": 0.05, "delta_high": 0.1},
        {"ratio_cap": 1.5},
    ],
    "dr_grpo": [WIDE],
    "dro": [{"beta": 0.5}],
    "dual_clip": [{**WIDE, "dual_clip": 2.0}],
    "gmpo": [{"log_clip_low": 0.2, "log_clip_high": 1.5}],
    "gspo": [WIDE],
    "gspo_token": [WIDE],
    "kl_cov": [{"share": 0.5, "kl_coefficient": 1.0}],
    "luspo": [WIDE],
    "rloo": [WIDE],
    "rollout_is": [WIDE],
    "sapo": [{"temperature_positive": 0.5, "temperature_negative": 2.0}],
    "vespo": [{"k_positive": 0.5, "lambda_positive": 0.25, "k_negative": 1.0, "lambda_negative": 0.5}],
}
