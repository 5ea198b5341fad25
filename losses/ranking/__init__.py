"""Ranking losses: one score per datum, a query with one candidate; the datums of one query are a group."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..family import share_losses

share_losses(globals())

if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., Any]:
        """Every loss that a file of this folder registers."""
        ...
