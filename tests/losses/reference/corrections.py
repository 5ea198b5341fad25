"""Losses made of losses in NumPy: `reinforce` times the weight that each suffix gives, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .rows import MAX_LOG_RATIO, Reference, Row

Array = np.ndarray
#: A row and settings to its weights [n].
Weight = Callable[..., Array]


def drift(row: Row) -> Array:
    """log c: how much likelier each token is under the trainer than in the engine."""
    return np.real(row["sampling_logprobs"] - row["rollout_logprobs"])


def at_level(level: str, row: Row) -> Array:
    """c of tokens, of the response, or its geometric mean, at every token."""
    x = drift(row)
    if level == "sequence":
        x = np.full(len(x), x.sum())
    elif level == "geometric":
        x = np.full(len(x), x.mean())
    return np.exp(np.minimum(np.maximum(x, -MAX_LOG_RATIO), MAX_LOG_RATIO))


def weight(level: str, rule: str) -> Weight:
    """Of `level_rule`."""

    def of_row(
        row: Row,
        *,
        cap: float = np.inf,
        floor: float = 0.0,
        low: float = 0.0,
        high: float = np.inf,
    ) -> Array:
        weights = []
        for c in at_level(level, row):
            if rule in ("truncate", "clamp", "uncapped"):
                weights.append(max(floor, min(c, cap)))
            elif rule == "mask":
                weights.append(c if c <= cap else 0.0)
            else:
                kept = c if rule == "band" else 1.0
                weights.append(kept if low <= c <= high else 0.0)
        return np.array(weights)

    return of_row


def divergence(name: str, row: Row) -> Array:
    """Of each token, from rollout p to trainer q."""
    p, q = (np.exp(np.real(row[key])) for key in ("rollout_logprobs", "sampling_logprobs"))
    x = np.clip(drift(row), -MAX_LOG_RATIO, MAX_LOG_RATIO)
    if name == "binary_kl":
        rest_p, rest_q = np.maximum(1 - p, 1e-6), np.maximum(1 - q, 1e-6)
        return -p * x + (1 - p) * np.log(rest_p / rest_q)
    return {"k1": -x, "k2": x * x / 2, "k3": np.exp(x) - 1 - x, "tv": np.abs(p - q)}[name]


def rejection(over: str, name: str) -> Weight:
    """Of `reject_over_name`."""

    def of_row(row: Row, **bounds: float) -> Array:
        low, high = bounds.get(f"{over}_{name}_low", -np.inf), bounds[f"{over}_{name}_high"]
        values = divergence(name, row)
        if over in ("sum", "mean"):
            values = np.full(len(values), values.sum() if over == "sum" else values.mean())
        kept = (values >= low) & (values <= high)
        return (np.full(len(kept), kept.all()) if over == "max" else kept).astype(float)

    return of_row


def weighed(of_row: Weight) -> Reference:
    """-A p times the weight."""

    def loss(rows: Sequence[Row], **settings: float) -> list[Array]:
        return [-row["advantages"] * row["logprobs"] * of_row(row, **settings) for row in rows]

    return loss


def high_entropy(rows: Sequence[Row], *, entropy_share: float) -> list[Array]:
    """-A p where the entropy is among the highest of all rows."""
    entropies = np.real(np.concatenate([row["entropy"] for row in rows]))
    threshold = np.quantile(entropies, 1 - entropy_share)
    return [-row["advantages"] * row["logprobs"] * (np.real(row["entropy"]) >= threshold) for row in rows]


#: Each suffix's reference, and settings to compare it under.
SUFFIXES: dict[str, tuple[Reference, dict[str, float]]] = {
    **{
        f"{level}_{rule}": (weighed(weight(level, rule)), settings)
        for level in ("token", "sequence", "geometric")
        for rule, settings in (
            ("truncate", {"cap": 1.5}),
            ("clamp", {"floor": 0.7, "cap": 1.5}),
            ("uncapped", {}),
            ("mask", {"cap": 1.5}),
            ("band", {"low": 0.6, "high": 1.5}),
            ("reject", {"low": 0.6, "high": 1.5}),
        )
    },
    **{
        f"reject_{over}_k1": (weighed(rejection(over, "k1")), {f"{over}_k1_low": -0.5, f"{over}_k1_high": 0.4})
        for over in ("token", "sum", "mean", "max")
    },
    **{
        f"reject_{over}_{name}": (weighed(rejection(over, name)), {f"{over}_{name}_high": high})
        for over in ("token", "sum", "mean", "max")
        for name, high in (("k2", 0.2), ("k3", 0.2), ("binary_kl", 0.05), ("tv", 0.1))
    },
    "top_entropy": (high_entropy, {"entropy_share": 0.37}),
}
