"""What the trainer needs of a loss, whatever it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from ...datums.types import Datum
from ..reductions import Count
from ..stats import Stat
from .bound import BoundLoss


class LossLike(Protocol):
    """What the trainer needs of a loss: `Loss` and `Mixture` both are this."""

    @property
    def name(self) -> str:
        """Its id."""
        ...

    @property
    def couples(self) -> str:
        """What must be seen together: "token", "datum", "pair" or "batch"."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """The model outputs it reads."""
        ...

    @property
    def on_host(self) -> bool:
        """Whether it wants its inputs on the CPU, as the hosted APIs hand them out."""
        ...

    @property
    def is_mean(self) -> bool:
        """Whether anything in it is divided by a count of its data."""
        ...

    def prepare(self, data: Sequence[Datum], *, strict: bool = False) -> BoundLoss:
        """Check and pack a call's data once; raise for unusable data before any forward."""
        ...

    def check(self, data: Sequence[Datum], *, strict: bool = False) -> Count:
        """Raise for unusable data before any forward; return the denominator."""
        ...

    def active(self, data: Sequence[Datum]) -> Tensor:
        """[all positions] bool: where the model's outputs are needed."""
        ...

    def count(self, data: Sequence[Datum]) -> Count:
        """These datums' share of the denominator, from data alone."""
        ...

    def terms(self, data: Sequence[Datum], outputs: Any) -> tuple[Tensor, dict[str, Stat]]:
        """The undivided total and the metrics of these datums."""
        ...
