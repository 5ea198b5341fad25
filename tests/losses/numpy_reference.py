"""The six losses and every reduction a second time: NumPy and loops, one token after the other, derivatives by hand.

Written from the papers' formulas and slow on purpose, so that it can be read beside them. It shares no code with the package.
A `Sequence` holds the numbers of one datum; every function returns values and their slopes with respect to the logprobs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: Importance ratios are held below exp(20).
MAX_LOG_RATIO = 20.0


@dataclass
class Sequence:
    """One datum: logprobs and weights [N] or [N, K], and other inputs [N] by name."""

    logprobs: np.ndarray
    weights: np.ndarray
    inputs: dict[str, np.ndarray] = field(default_factory=dict)


def capped_ratio(logprob: float, old_logprob: float, cap: float = MAX_LOG_RATIO) -> tuple[float, float]:
    """exp of the log-ratio held within ±cap, and its slope, which is 0 beyond the cap."""
    log_ratio = logprob - old_logprob
    if log_ratio > cap:
        return math.exp(cap), 0.0
    if log_ratio < -cap:
        return math.exp(-cap), 0.0
    return math.exp(log_ratio), math.exp(log_ratio)


def cross_entropy(logprob: float, token: dict[str, float]) -> tuple[float, float]:
    """-p."""
    return -logprob, -1.0


def importance_sampling(logprob: float, token: dict[str, float], ratio_log_cap: float = 20.0) -> tuple[float, float]:
    """-r A."""
    ratio, slope = capped_ratio(logprob, token["sampling_logprobs"], ratio_log_cap)
    return -ratio * token["advantages"], -slope * token["advantages"]


def ppo(logprob: float, token: dict[str, float], clip_low: float = 0.8, clip_high: float = 1.2) -> tuple[float, float]:
    """-min(r A, clip(r) A); flat where the clipped product is the smaller."""
    low = token.get("clip_low_threshold", clip_low)
    high = token.get("clip_high_threshold", clip_high)
    advantage = token["advantages"]
    ratio, slope = capped_ratio(logprob, token["sampling_logprobs"])
    clipped = low if ratio < low else high if ratio > high else ratio
    if clipped * advantage < ratio * advantage:
        return -clipped * advantage, 0.0
    return -ratio * advantage, -slope * advantage


def kl_estimate(logprob: float, ref_logprob: float, estimator: str) -> tuple[float, float]:
    """k1 = d, k2 = d²/2, k3 = exp(-d) - 1 + d, with d = p - f (in k3 held within ±20)."""
    difference = logprob - ref_logprob
    if estimator == "k1":
        return difference, 1.0
    if estimator == "k2":
        return difference**2 / 2, difference
    if abs(difference) > MAX_LOG_RATIO:
        difference = math.copysign(MAX_LOG_RATIO, difference)
        return math.exp(-difference) - 1 + difference, 0.0
    return math.exp(-difference) - 1 + difference, 1 - math.exp(-difference)


def grpo(
    logprob: float,
    token: dict[str, float],
    clip_low: float = 0.8,
    clip_high: float = 1.2,
    kl_coefficient: float = 0.001,
    kl_estimator: str = "k3",
) -> tuple[float, float]:
    """PPO plus kl_coefficient times a KL estimate."""
    loss, slope = ppo(logprob, token, clip_low, clip_high)
    if "ref_logprobs" not in token:
        return loss, slope
    divergence, divergence_slope = kl_estimate(logprob, token["ref_logprobs"], kl_estimator)
    return loss + kl_coefficient * divergence, slope + kl_coefficient * divergence_slope


TOKEN_LOSSES = {
    "cross_entropy": cross_entropy,
    "importance_sampling": importance_sampling,
    "ppo": ppo,
    "grpo": grpo,
}


def denominator(sequences: Rows[Sequence], reduction: str, norm_length: int | None = None) -> float:
    """What a loss per token is divided by, besides the tokens of each sequence under seq-mean-token-mean."""
    counted = 0
    total_weight = 0.0
    for sequence in sequences:
        counted += any(weight != 0 for weight in sequence.weights.flat)
        total_weight += sum(float(weight) for weight in sequence.weights.flat)
    if reduction == "token-mean":
        return total_weight
    if reduction in ("seq-mean-token-mean", "seq-mean-token-sum"):
        return float(counted)
    if reduction == "seq-mean-token-sum-norm":
        assert norm_length is not None
        return float(counted * norm_length)
    assert reduction == "sum"
    return 1.0


def token_loss(
    name: str, sequences: Rows[Sequence], reduction: str, norm_length: int | None = None, **settings: Any
) -> tuple[float, list[np.ndarray]]:
    """The reduced loss and its gradient, an array a sequence, in the logprobs' shape."""
    divisor = denominator(sequences, reduction, norm_length)
    value = 0.0
    gradients = []
    for sequence in sequences:
        own_weight = sum(float(weight) for weight in sequence.weights.flat)
        gradient = np.zeros_like(sequence.logprobs)
        for place in np.ndindex(sequence.logprobs.shape):
            weight = float(sequence.weights[place])
            if weight == 0:
                continue
            token = {key: float(values[place[0]]) for key, values in sequence.inputs.items()}
            loss, slope = TOKEN_LOSSES[name](float(sequence.logprobs[place]), token, **settings)
            share = weight / divisor / (own_weight if reduction == "seq-mean-token-mean" else 1.0)
            value += share * loss
            gradient[place] = share * slope
        gradients.append(gradient)
    return value, gradients


def log_sigmoid(x: float) -> float:
    """log(1 / (1 + exp(-x))) without overflow."""
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def dpo(
    sequences: Rows[Sequence], reduction: str, beta: float = 0.1, label_smoothing: float = 0.0
) -> tuple[float, list[np.ndarray]]:
    """-(1 - ε) log σ(beta Δ) - ε log σ(-beta Δ) over pairs 2i, 2i + 1; pairs of two empty sides do not count."""
    active = [2 * i for i in range(len(sequences) // 2) if any(sequences[2 * i].weights)]
    divisor = 1 if reduction == "sum" else len(active)
    value = 0.0
    gradients = [np.zeros_like(sequence.logprobs) for sequence in sequences]
    for first in active:
        margin = 0.0
        for sequence, sign in ((sequences[first], 1), (sequences[first + 1], -1)):
            for t, weight in enumerate(sequence.weights):
                if weight:
                    margin += sign * weight * (sequence.logprobs[t] - sequence.inputs["ref_logprobs"][t])
        x = beta * margin
        value += (-(1 - label_smoothing) * log_sigmoid(x) - label_smoothing * log_sigmoid(-x)) / divisor
        # d log σ(x) / dx = σ(-x)
        slope = beta * (-(1 - label_smoothing) * math.exp(log_sigmoid(-x)) + label_smoothing * math.exp(log_sigmoid(x)))
        for which, sign in ((first, 1), (first + 1, -1)):
            gradients[which] = np.array([sign * slope * weight / divisor for weight in sequences[which].weights])
    return value, gradients


def info_nce(
    embeddings: np.ndarray, reduction: str, temperature: float = 0.02, num_extra_negatives: int = 0
) -> tuple[float, np.ndarray]:
    """Both directions' cross-entropies over cosine similarities / temperature; the gradient is in the embeddings' shape."""
    pairs = (len(embeddings) - num_extra_negatives) // 2
    lengths = [max(math.sqrt(sum(x * x for x in row)), 1e-12) for row in embeddings]
    directions = np.array([row / length for row, length in zip(embeddings, lengths, strict=True)])
    candidates = len(embeddings) - pairs
    similarity = np.zeros((pairs, candidates))
    for i in range(pairs):
        for j in range(candidates):
            similarity[i, j] = sum(directions[i] * directions[pairs + j]) / temperature
    value = 0.0
    slopes = np.zeros_like(similarity)
    for i in range(pairs):
        for line, row in ((similarity[i], True), (similarity[:, i], False)):
            shifted = np.exp(line - line.max())
            value += math.log(shifted.sum()) + line.max() - similarity[i, i]
            for j, share in enumerate(shifted / shifted.sum()):
                slopes[(i, j) if row else (j, i)] += share
            slopes[i, i] -= 1
    divisor = 1 if reduction == "sum" else 2 * pairs
    along = np.zeros_like(embeddings)
    for i in range(pairs):
        for j in range(candidates):
            along[i] += slopes[i, j] * directions[pairs + j] / temperature / divisor
            along[pairs + j] += slopes[i, j] * directions[i] / temperature / divisor
    # Turning a vector moves its direction; stretching it does not.
    gradient = np.array([(a - u * sum(a * u)) / n for a, u, n in zip(along, directions, lengths, strict=True)])
    return value / divisor, gradient
