"""Embedding losses: one pooled vector per datum."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..family import share_losses
from .matryoshka import matryoshka as matryoshka

share_losses(globals(), "matryoshka")

if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., Any]:
        """Every loss that a file of this folder registers."""
        ...
