"""Policy-gradient losses: tokens that a policy sampled, an advantage for each, and a ratio to the policy that sampled them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..family import share_losses
from .clipped import clipped_surrogate as clipped_surrogate

share_losses(globals(), "clipped_surrogate")

if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., Any]:
        """Every loss that a file of this folder registers."""
        ...
