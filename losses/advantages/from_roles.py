"""Advantages from what a role usually earns, for games between copies of one policy. The baselines lie outside, for a checkpoint."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from torch import Tensor

from .arguments import Groups, Rewards, check_number, check_share, check_size, finite, group_ids, numbers


def role_advantages(
    rewards: Rewards,
    roles: Groups,
    baselines: Mapping[Hashable, float] | None = None,
    *,
    decay: float = 0.95,
) -> tuple[Tensor, dict[Hashable, float]]:
    """r - the role's running mean reward [n], and the running means after these samples: role-conditioned advantages (RAE).

        advantages, baselines = role_advantages(rewards, roles, baselines)     # at each step

    rewards     [n] unitless, in the order in which the games ended
    roles       [n] ids, such as ("kuhn_poker", "first player")
    baselines   what the call before returned; a role that is not in it begins at 0

    Each reward is compared with its role's baseline b before it changes it: b becomes decay b + (1 - decay) r. In a zero-sum
    game the mean over both players is 0 whatever they do, so a group's mean says nothing, and a seat that mostly wins would
    be rewarded for its seat. Liu et al. 2025 (SPIRAL), arXiv:2506.24119, whose equation updates b first, and so scales every
    advantage by `decay`; this order is that of its code and of prime-rl's `rae`. With a single role it is REINFORCE with a
    running baseline. Raises LengthMismatchError, NonFiniteLossInput and LossConfigError.
    """
    check_share("decay", decay)
    values = finite(numbers(rewards, "rewards", "one number per sample"), "reward")
    check_size(values)
    after = dict(baselines or {})
    for role, value in after.items():
        check_number(f"the baseline of {role!r}", value)
    advantages = np.empty(len(values))
    for i, (role, reward) in enumerate(zip(group_ids(roles, len(values)), values.tolist(), strict=True)):
        baseline = after.get(role, 0.0)
        advantages[i] = reward - baseline
        after[role] = decay * baseline + (1 - decay) * reward
    return torch.from_numpy(advantages), after
