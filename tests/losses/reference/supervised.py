"""Supervised losses in NumPy, one row at a time, from the papers' formulas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .complex_step import clip, stop
from .rows import Row

Array = np.ndarray


def cross_entropy(rows: Sequence[Row]) -> list[Array]:
    """-log p."""
    return [-row["logprobs"] for row in rows]


def unlikelihood(rows: Sequence[Row]) -> list[Array]:
    """-log(1 - p), p at most exp(-1e-6). 1 - exp(x) = -2 sinh(x / 2) exp(x / 2), which cancels nowhere."""
    held = [clip(row["logprobs"], -np.inf, -1e-6) for row in rows]
    return [-(np.log(-2 * np.sinh(x / 2)) + x / 2) for x in held]


def dft(rows: Sequence[Row]) -> list[Array]:
    """-sg(p) log p."""
    return [-stop(np.exp(row["logprobs"])) * row["logprobs"] for row in rows]


def focal(rows: Sequence[Row], *, gamma: float) -> list[Array]:
    """-(1 - p)^gamma log p; 0 at p = 1, where the power has no derivative but the product has."""
    values = []
    for row in rows:
        x = row["logprobs"]
        certain = np.real(x) == 0
        doubt = np.where(certain, 1, -2 * np.sinh(x / 2) * np.exp(x / 2))
        values.append(-np.where(certain & (gamma > 0), 0, doubt**gamma) * x)
    return values


def poly1(rows: Sequence[Row], *, epsilon: float) -> list[Array]:
    """-log p + epsilon (1 - p)."""
    return [-row["logprobs"] + epsilon - epsilon * np.exp(row["logprobs"]) for row in rows]


def label_smoothing(rows: Sequence[Row], *, epsilon: float) -> list[Array]:
    """(1 - epsilon) nll + epsilon (mean over the vocabulary of -log p_v)."""
    values = []
    for row in rows:
        target, mean = row["logprobs"], row["mean_logprobs"]
        values.append((1 - epsilon) * -target + epsilon * -(mean if target.ndim == 1 else mean[:, None]))
    return values


def z_loss(rows: Sequence[Row], *, coefficient: float) -> list[Array]:
    """coefficient (log Z)²."""
    return [coefficient * row["logsumexp"] ** 2 for row in rows]


def eaft(rows: Sequence[Row], *, alpha: float, top_k: int) -> list[Array]:
    """-sg(H / ln K)^alpha log p, where H is the entropy of the K likeliest tokens, renormalised."""
    values = []
    for row in rows:
        masses = np.exp(stop(row["topk_logprobs"][:, :top_k]))
        shares = masses / masses.sum(1, keepdims=True)
        entropy = -(shares * np.log(shares)).sum(1)
        values.append(-((entropy / np.log(top_k)) ** alpha) * row["logprobs"])
    return values


REFERENCES = {
    "cross_entropy": cross_entropy,
    "dft": dft,
    "eaft": eaft,
    "focal": focal,
    "label_smoothing": label_smoothing,
    "poly1": poly1,
    "unlikelihood": unlikelihood,
    "z_loss": z_loss,
}
#: Settings, beside the defaults, under which each loss is compared.
VARIANTS: dict[str, list[dict]] = {
    "eaft": [{"alpha": 0.0}, {"alpha": 0.5, "top_k": 3}, {"alpha": 2.0, "top_k": 2}],
    "focal": [{"gamma": 0.0}, {"gamma": 0.5}, {"gamma": 1.0}, {"gamma": 3.5}],
    "label_smoothing": [{"epsilon": 0.0}, {"epsilon": 0.3}, {"epsilon": 1.0}],
    "poly1": [{"epsilon": 0.0}, {"epsilon": 0.5}],
    "z_loss": [{"coefficient": 0.5}],
}
