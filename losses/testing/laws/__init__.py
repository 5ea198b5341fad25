"""Laws of families of losses. A loss names those that it obeys when it is registered, and the kit checks them.

    @register_loss("my_ppo", ..., laws={"on_policy_is_reinforce": {}})

The value holds the law's settings, such as the bounds that open a clip. For a loss that is not registered, pass the laws
to the kit: `check_loss(my_function, laws={"on_policy_is_reinforce": {}})`.
"""

from __future__ import annotations

from . import distillation, embedding, policy, preference, ranking, whole

#: Every law of a family.
CHECKS = (
    *distillation.CHECKS,
    *embedding.CHECKS,
    *policy.CHECKS,
    *preference.CHECKS,
    *ranking.CHECKS,
    *whole.CHECKS,
)

__all__ = ["CHECKS", "distillation", "embedding", "policy", "preference", "ranking", "whole"]
