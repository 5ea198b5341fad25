"""Tinker's built-in losses in NumPy: the value of one datum, and its derivative by each logprob.

Written from the public definitions and apart from lossbook's own losses, so that both can be held against it. All sum over
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

#: (logprobs [N], inputs, config) -> (each token's loss [N], its derivative by that logprob [N]).
Formula = Callable[[np.ndarray, Mapping[str, np.ndarray], Mapping[str, float]], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class BuiltIn:
    """A built-in loss: its formula, and settings to ask it with."""

    formula: Formula
    config: dict[str, float]


def cross_entropy(
    logprobs: np.ndarray, inputs: Mapping[str, np.ndarray], config: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """-w lp; of [N] or [N, K]."""
    weights = inputs["weights"].astype(np.float64)
    return -weights * logprobs, -weights


def importance_sampling(
    logprobs: np.ndarray, inputs: Mapping[str, np.ndarray], config: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """-exp(lp - q) A."""
    ratio, advantages = _ratio(logprobs, inputs)
    return -ratio * advantages, -ratio * advantages


def ppo(
    logprobs: np.ndarray, inputs: Mapping[str, np.ndarray], config: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """-min(r A, clip(r) A)."""
    ratio, advantages = _ratio(logprobs, inputs)
    return _clipped(ratio, ratio, advantages, config)


def cispo(
    logprobs: np.ndarray, inputs: Mapping[str, np.ndarray], config: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """-clip(r) lp A, with no gradient through r."""
    ratio, advantages = _ratio(logprobs, inputs)
    factor = np.clip(ratio, config["clip_low_threshold"], config["clip_high_threshold"]) * advantages
    return -factor * logprobs, -factor


def dro(
    logprobs: np.ndarray, inputs: Mapping[str, np.ndarray], config: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """-(lp A - beta / 2 (lp - q)^2)."""
    advantages = inputs["advantages"].astype(np.float64)
    difference = logprobs - inputs["logprobs"].astype(np.float64)
    values = -(logprobs * advantages - 0.5 * config["beta"] * difference**2)
    return values, -(advantages - config["beta"] * difference)


def gspo(
    logprobs: np.ndarray, inputs: Mapping[str, np.ndarray], config: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """ppo with one ratio per sequence, exp(mean of lp - q over the mask), whose gradient goes through each token's lp."""
    mask = inputs["sequence_ratio_mask"].astype(bool)
    difference = logprobs - inputs["logprobs"].astype(np.float64)
    ratio = np.full_like(logprobs, np.exp(difference[mask].mean()))
    return _clipped(ratio, ratio, inputs["advantages"].astype(np.float64), config)


def _ratio(logprobs: np.ndarray, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.exp(logprobs - inputs["logprobs"].astype(np.float64)), inputs["advantages"].astype(np.float64)


def _clipped(
    ratio: np.ndarray, slope: np.ndarray, advantages: np.ndarray, config: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    bounded = np.clip(ratio, config["clip_low_threshold"], config["clip_high_threshold"])
    values = -np.minimum(ratio * advantages, bounded * advantages)
    binds = bounded * advantages < ratio * advantages
    return values, np.where(binds, 0.0, -slope * advantages)


_BOUNDS = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.25}
BUILT_INS: dict[str, BuiltIn] = {
    "cross_entropy": BuiltIn(cross_entropy, {}),
    "importance_sampling": BuiltIn(importance_sampling, {}),
    "ppo": BuiltIn(ppo, _BOUNDS),
    "cispo": BuiltIn(cispo, _BOUNDS),
    "dro": BuiltIn(dro, {"beta": 0.3}),
    "gspo": BuiltIn(gspo, _BOUNDS),
}
