"""Means over seeds with their 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Mean:
    """The mean of `count` values, one per run. half_width: of its 95 % interval (Student's t); None for a single value."""

    value: float
    half_width: float | None
    count: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The ends of the interval."""
        return None if self.half_width is None else (self.value - self.half_width, self.value + self.half_width)

    def __str__(self) -> str:
        return f"{self.value:.4g}" if self.half_width is None else f"{self.value:.4g} ± {self.half_width:.2g}"


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of at least one value, and its interval: t s / √n, where s² is the variance with n - 1 in its denominator."""
    numbers = np.asarray(values, dtype=np.float64)
    n = len(numbers)
    spread = float(numbers.std(ddof=1)) if np.ptp(numbers) > 0 else 0.0  # of equal values rounding would leave some
    half = None if n < 2 else student_t(n - 1) * spread / math.sqrt(n)
    return Mean(float(numbers.mean()), half, n)


@cache
def student_t(degrees: int, level: float = LEVEL) -> float:
    """The t with P(|T| < t) = level under Student's t distribution with so many degrees of freedom, at least 1.

    The probability is a finite sum in θ = atan(t / √degrees) (Abramowitz & Stegun 26.7.3, 26.7.4), solved by bisection.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability(middle, degrees) < level else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _probability(angle: float, degrees: int) -> float:
    """P(|T| < √degrees tan(angle))."""
    is_odd = degrees % 2
    term = math.cos(angle) if is_odd else 1.0
    total = 0.0
    for k in range(2 + is_odd, degrees + 1, 2):
        total += term
        term *= (k - 1) / k * math.cos(angle) ** 2
    return 2 / math.pi * (angle + math.sin(angle) * total) if is_odd else math.sin(angle) * total
