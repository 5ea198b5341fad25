"""`lossbook.losses.returns`: advantages and returns from values. They live in `advantages/from_values.py`."""

from .advantages.from_values import discounted, gae, igpo, kl_penalized_advantages, reinforce_plus_plus_tokens

__all__ = ["discounted", "gae", "igpo", "kl_penalized_advantages", "reinforce_plus_plus_tokens"]
