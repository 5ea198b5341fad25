"""Scaling and adding losses: `0.9 * loss + 0.1 * other`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor

from ...datums.errors import LossContractError

M = TypeVar("M")


class Arithmetic(ABC, Generic[M]):
    """Numbers times losses, and sums of these, are mixtures (M)."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its id."""

    @property
    @abstractmethod
    def parts(self) -> Sequence[tuple[float, Any]]:
        """(factor, loss) of each part."""

    @abstractmethod
    def _mixture(self, parts: Sequence[tuple[float, Any]]) -> M:
        """These parts as a mixture."""

    def __rmul__(self, factor: float) -> M:
        factor = factor_of(factor, self.name)
        return self._mixture([(factor * own, part) for own, part in self.parts])

    __mul__ = __rmul__

    def __truediv__(self, divisor: float) -> M:
        if not (divisor := factor_of(divisor, self.name)):
            raise LossContractError(f"{self.name} cannot be divided by 0")
        return (1 / divisor) * self

    def __add__(self, other: Any) -> M:
        if not isinstance(other, Arithmetic):
            return NotImplemented
        return self._mixture([*self.parts, *other.parts])

    def __radd__(self, other: Any) -> M:
        if isinstance(other, int) and other == 0:  # where the builtin sum() begins
            return 1.0 * self
        return NotImplemented

    def __sub__(self, other: Any) -> M:
        if not isinstance(other, Arithmetic):
            return NotImplemented
        return self + -1.0 * other

    def __neg__(self) -> M:
        return -1.0 * self


def factor_of(value: Any, name: str) -> float:
    """A factor of a loss as a finite float. Raises LossContractError for anything else."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise LossContractError(
            f"a factor of {name} is a fixed number; a parameter would not be learned. Hold it in a function or module of "
            "your own"
        )
    try:
        factor = float(value)
    except (TypeError, ValueError):
        raise LossContractError(f"{name} is multiplied by numbers, not by {value!r:.60}") from None
    if not math.isfinite(factor):
        raise LossContractError(f"{name} is multiplied by {factor}: a factor is a finite number")
    return factor
