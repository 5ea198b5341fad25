"""SkyRL's own functions: `skyrl.backends.skyrl_train.utils.ppo_utils`, run as installed (packages.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from torch import Tensor

from .packages import imported
from .verl_core import Peer

PACKAGE = "skyrl"
ABSENT = ("jaxtyping", "loguru", "omegaconf", "tensordict", "skyrl_gym")
BARE = (
    "skyrl",
    "skyrl.backends",
    "skyrl.backends.skyrl_train",
    "skyrl.backends.skyrl_train.utils",
    "skyrl.train",
)
#: SkyRL's functions by the names that it registers them under. Its registries would start an actor where ray runs.
POLICIES = {
    "regular": "ppo_policy_loss",
    "dual_clip": "ppo_policy_loss",
    "gspo": "gspo_policy_loss",
    "sapo": "sapo_policy_loss",
    "cispo": "compute_policy_loss_cispo",
    "rollout_is": "rollout_is_policy_loss",
    "dppo": "dppo_policy_loss",
    "clip_cov": "compute_policy_loss_clip_cov",
    "kl_cov": "compute_policy_loss_kl_cov",
    "cross_entropy": "cross_entropy_loss",
    "importance_sampling": "importance_sampling_loss",
}
ADVANTAGES = {
    "grpo": "compute_grpo_outcome_advantage",
    "rloo": "compute_rloo_outcome_advantage",
    "gae": "compute_gae_advantage_return",
    "maxrl": "compute_maxrl_advantage",
}


def core() -> Any:
    """The module with policy losses, advantages, KL estimators and the critic's loss. It starts no actors when it is imported."""
    with patch("ray.is_initialized", return_value=False):
        return imported("skyrl.backends.skyrl_train.utils.ppo_utils", ABSENT, BARE)


def config(**settings: Any) -> Any:
    """SkyRL's AlgorithmConfig with its defaults, and these, also of the configs inside it."""
    made = core().AlgorithmConfig()
    for name, value in settings.items():
        holders = [made, *(getattr(made, field.name) for field in dataclasses.fields(made))]
        holder = next(one for one in holders if dataclasses.is_dataclass(one) and hasattr(one, name))
        setattr(holder, name, value)
    return made


def policy(mode: str, **settings: Any) -> Peer:
    """The policy loss that SkyRL registers as `mode`, after its trainer has divided the advantages."""

    def compute(logprobs: Tensor, sampling: Tensor, reference: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
        own = config(policy_loss_type=mode, **settings)
        loss, _ = getattr(core(), POLICIES[mode])(
            logprobs,
            sampling,
            divided(advantages, mask, own),
            own,
            loss_mask=mask,
            rollout_logprobs=sampling if mode in ("rollout_is", "dppo") else None,
        )
        return loss

    return compute


def advantage(name: str) -> Callable[..., Any]:
    """One of SkyRL's advantage estimators by its registered name."""
    return getattr(core(), ADVANTAGES[name])


def divided(advantages: Tensor, mask: Tensor, own: Any) -> Tensor:
    """Advantages [B, L] as SkyRL's trainer hands them to a loss: over the denominator, since its losses are sums."""
    divide = core().apply_loss_reduction_to_advantages_minibatch
    return divide(advantages, mask, own.loss_reduction, len(mask), own.max_seq_len or mask.shape[1])


def critic(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """The critic's loss with SkyRL's defaults."""
    return core().ppo_critic_loss(values, old_values, returns, config(), mask)[0]


def scaled(batch: Any) -> Any:
    """Datums whose advantages are over the number of active tokens."""
    return batch.data(advantages=divided(batch.advantages, batch.mask, config()))
