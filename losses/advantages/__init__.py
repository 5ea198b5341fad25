"""Advantages, from rewards and from values. `lossbook.losses.returns` is `from_values`."""

from .arguments import Groups, Rewards
from .from_rewards import (
    FLOOR,
    NonFinite,
    batch_scaled,
    centred,
    gdpo,
    gpg,
    group_advantages,
    maxrl,
    opo,
    pass_at_k,
    reinforce_plus_plus,
    remax,
    rloo,
)

__all__ = [
    "FLOOR",
    "Groups",
    "NonFinite",
    "Rewards",
    "batch_scaled",
    "centred",
    "gdpo",
    "gpg",
    "group_advantages",
    "maxrl",
    "opo",
    "pass_at_k",
    "reinforce_plus_plus",
    "remax",
    "rloo",
]
