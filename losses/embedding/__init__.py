"""Embedding losses: one pooled vector per datum."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..family import share_losses
from .adaptive_layer import adaptive_layer as adaptive_layer
from .adaptive_layer import matryoshka_2d as matryoshka_2d
from .adaptive_layer import sampled_layers as sampled_layers
from .matryoshka import matryoshka as matryoshka

share_losses(globals(), "adaptive_layer", "matryoshka", "matryoshka_2d", "sampled_layers")

if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., Any]:
        """Every loss that a file of this folder registers."""
        ...
