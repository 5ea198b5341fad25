"""verl's own functions: `verl.trainer.ppo.core_algos` and the correction of rollouts, run as installed (packages.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .packages import imported

PACKAGE = "verl"
#: What verl imports, and its losses do without.
ABSENT = ("tensordict", "omegaconf", "codetiming")

#: Logprobs, sampler's and reference's logprobs, mask [B, L] and advantages [B, L] or [B] to a loss.
Peer = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def core() -> Any:
    """The module with policy losses, advantages, KL estimators, aggregation and the value loss."""
    return imported("verl.trainer.ppo.core_algos", ABSENT)


def correction() -> Any:
    """The module with weights and rejection for rollouts: rollout_corr_helper."""
    helper = imported("verl.trainer.ppo.rollout_corr_helper", ABSENT)
    imported("verl.protocol", ABSENT).TensorDict = Tensors
    return helper


class Tensors(dict[str, Tensor]):
    """What verl takes of tensordict's TensorDict where it hands weights from one function to the next."""

    def __init__(self, source: dict[str, Tensor], batch_size: Any) -> None:
        super().__init__(source)
        self.batch_size = batch_size


def config(**settings: Any) -> Any:
    """verl's ActorConfig with its defaults, and these. Settings of PolicyLossConfig and of RolloutCorrectionConfig too."""
    kinds = imported("verl.workers.config", ABSENT)
    rollout = imported("verl.trainer.config", ABSENT).RolloutCorrectionConfig
    own, policy, corrections = (
        {one.name: settings[one.name] for one in dataclasses.fields(kind) if one.name in settings}
        for kind in (kinds.ActorConfig, kinds.PolicyLossConfig, rollout)
    )
    unknown = settings.keys() - own.keys() - policy.keys() - corrections.keys()
    assert not unknown, f"verl has no setting {', '.join(sorted(unknown))}"
    inner = kinds.PolicyLossConfig(**policy, rollout_correction=rollout(**corrections))
    return kinds.ActorConfig(strategy="fsdp", rollout_n=1, use_dynamic_bsz=True, policy_loss=inner, **own)


def policy(mode: str, **settings: Any) -> Peer:
    """The policy loss that verl registers as `mode`, with its defaults and these settings, as its workers call it."""

    def compute(logprobs: Tensor, sampling: Tensor, reference: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
        own = config(**settings)
        if mode == "bypass_mode":
            correction()
        if advantages.dim() == 1:
            advantages = advantages[:, None].expand_as(mask)
        loss, _ = core().get_policy_loss_fn(mode)(
            old_log_prob=sampling,
            log_prob=logprobs,
            advantages=advantages,
            response_mask=mask,
            loss_agg_mode=own.loss_agg_mode,
            config=own,
        )
        return loss

    return compute


def advantage(name: str) -> Callable[..., Any]:
    """One of verl's advantage estimators by its registered name."""
    return core().get_adv_estimator_fn(name)
