"""Laws of a family of losses: a loss claims them when it is registered, and the kit then holds it to them.

    @register_loss("my_ppo", ..., claims={"on_policy_is_reinforce": {}})

A law may need settings, such as which bounds open a clip: they are the value. For a loss that is not registered they are
given to the kit, `check_loss(my_function, laws={"on_policy_is_reinforce": {}})`.
"""

from __future__ import annotations

from . import distillation, embedding, policy, preference

#: Every law that a loss may claim.
CHECKS = (*distillation.CHECKS, *embedding.CHECKS, *policy.CHECKS, *preference.CHECKS)

__all__ = ["CHECKS", "distillation", "embedding", "policy", "preference"]
