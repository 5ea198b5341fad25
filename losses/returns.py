"""`lossbook.losses.returns`: advantages and returns from values, and from a teacher. They live in `advantages/`."""

from .advantages.from_teachers import teacher_advantages
from .advantages.from_values import (
    adaptive_decay,
    discounted,
    gae,
    igpo,
    kl_penalized_advantages,
    reinforce_plus_plus_tokens,
)

__all__ = [
    "adaptive_decay",
    "discounted",
    "gae",
    "igpo",
    "kl_penalized_advantages",
    "reinforce_plus_plus_tokens",
    "teacher_advantages",
]
