"""`lossbook.losses.returns`: advantages from values, steps, roles and a teacher. They live in `advantages/`."""

from .advantages.from_roles import role_advantages
from .advantages.from_steps import gigpo, optimal_token_baseline
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
    "gigpo",
    "igpo",
    "kl_penalized_advantages",
    "optimal_token_baseline",
    "reinforce_plus_plus_tokens",
    "role_advantages",
    "teacher_advantages",
]
