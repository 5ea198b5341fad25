"""Derivatives of NumPy formulas to the last digit, and functions that may be differentiated so.

f(x + ih) = f(x) + ih f'(x) - ..., so with h = 1e-30 the imaginary part over h is the derivative, without the cancellation of
a difference quotient (Squire & Trapp 1998). A formula must not look at imaginary parts: comparisons are of real parts, and
where a loss stops the gradient, `stop` drops the imaginary part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

STEP = 1e-30

Array = np.ndarray


def derivatives(function: Callable[[list[Array]], complex], points: Sequence[Array]) -> tuple[float, list[Array]]:
    """Value and gradient of a scalar function of several arrays."""
    base = [np.array(point, dtype=complex) for point in points]
    value = complex(function(base)).real
    gradients = [np.zeros(point.shape) for point in base]
    for point, gradient in zip(base, gradients, strict=True):
        for place in np.ndindex(point.shape):
            point[place] += 1j * STEP
            gradient[place] = complex(function(base)).imag / STEP
            point[place] = point[place].real
    return value, gradients


def stop(x: Array) -> Array:
    """The value without its gradient."""
    return np.real(x) + 0j


def where(condition: Array, a: Array, b: Array) -> Array:
    """One of two values; conditions are on real parts."""
    return np.where(condition, a, b)


def minimum(a: Array, b: Array) -> Array:
    """The one with the smaller real part, the first where they are equal."""
    a, b = np.broadcast_arrays(np.asarray(a, dtype=complex), np.asarray(b, dtype=complex))
    return np.where(a.real <= b.real, a, b)


def maximum(a: Array, b: Array) -> Array:
    """The one with the larger real part, the first where they are equal."""
    a, b = np.broadcast_arrays(np.asarray(a, dtype=complex), np.asarray(b, dtype=complex))
    return np.where(a.real >= b.real, a, b)


def clip(x: Array, low: Array | float, high: Array | float) -> Array:
    """x held within bounds; flat outside."""
    return np.where(np.real(x) < low, low, np.where(np.real(x) > high, high, x))


def absolute(x: Array) -> Array:
    """|x|, whose slope at 0 is 0."""
    return np.sign(np.real(x)) * x


def log_sigmoid(x: Array) -> Array:
    """log(1 / (1 + exp(-x))) without overflow."""
    x = np.asarray(x, dtype=complex)
    positive = np.where(x.real > 0, x, 0)
    negative = np.where(x.real > 0, 0, x)
    return np.where(x.real > 0, -np.log1p(np.exp(-positive)), negative - np.log1p(np.exp(negative)))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    return np.exp(log_sigmoid(x))


def logsumexp(x: Array, axis: int = -1) -> Array:
    """log Σ exp(x) without overflow; -inf where everything is."""
    highest = np.max(np.real(x), axis=axis, keepdims=True)
    shift = np.where(np.isfinite(highest), highest, 0)
    return (np.log(np.sum(np.exp(x - shift), axis=axis, keepdims=True)) + shift).squeeze(axis)


def normalised(x: Array) -> Array:
    """Vectors [..., D] divided by their lengths (1e-12 at least)."""
    length = np.sqrt(np.sum(x * x, axis=-1, keepdims=True))
    return x / maximum(length, np.full(length.shape, 1e-12))
