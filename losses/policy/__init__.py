"""Policy-gradient losses: tokens that a policy sampled, an advantage each, and a ratio to the policy that sampled them."""

from .clipped import clipped_surrogate, grpo, importance_sampling, ppo
from .plain import reinforce

__all__ = ["clipped_surrogate", "grpo", "importance_sampling", "ppo", "reinforce"]
