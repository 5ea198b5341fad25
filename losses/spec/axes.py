"""The axes along which losses of one name differ from library to library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Axes:
    """Where a loss stands on three of the four axes; the fourth, the reduction, is one of its settings.

    ratio: "token" or "sequence" if it weighs by exp(logprobs - other logprobs), else "none". clip: the clipped quantity, its
    bounds, and the effect on the gradient. kl: the other policy, the estimator, and whether the term has a gradient.
    """

    ratio: Literal["none", "token", "sequence"] = "none"
    clip: str = "none"
    kl: str = "none"
