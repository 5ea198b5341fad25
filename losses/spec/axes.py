"""The axes along which losses of one name differ from library to library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Axes:
    """Where a loss stands on three of the four axes; the fourth, the reduction, is one of its settings.

    ratio: "token" or "sequence" where it weighs by exp(logprobs - other logprobs), else "none". clip: what is held within
    which bounds, and what that does to the gradient. kl: to which policy, by which estimator, and whether it has a gradient.
    """

    ratio: Literal["none", "token", "sequence"] = "none"
    clip: str = "none"
    kl: str = "none"
