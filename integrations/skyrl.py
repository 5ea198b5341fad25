"""Losses in SkyRL: a function with the signature that its `PolicyLossRegistry` asks for.

    from lossbook.integrations.skyrl import policy_loss
    from skyrl.backends.skyrl_train.utils.ppo_utils import PolicyLossRegistry
    PolicyLossRegistry.register("lossbook_dapo", policy_loss("dapo"))

and `trainer.algorithm.policy_loss_type=lossbook_dapo`. Written for SkyRL 0.4.0; SkyRL itself is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..datums.errors import LossConfigError, LossContractError, MissingInput
from ..losses.loss.loss import LossLike
from ..losses.registry import get_loss
from .requirements import (
    AnyLoss,
    adapted,
    check_couples,
    check_reads,
    check_values,
    denominators,
    is_against_rollout,
    reads,
    remade,
    wanted,
)

#: Settings of SkyRL's own losses, with their defaults.
_OWN_SETTINGS = {
    "eps_clip_low": 0.2,
    "eps_clip_high": 0.2,
    "clip_ratio_c": 3.0,
    "use_tis": False,
    "off_policy_correction.tis_ratio_type": None,
    "off_policy_correction.sequence_mask_metric": None,
    "off_policy_correction.outlier_token_is_threshold_low": None,
    "off_policy_correction.outlier_token_is_threshold_high": None,
    "off_policy_correction.token_mask_is_threshold_low": None,
    "off_policy_correction.token_mask_is_threshold_high": None,
}


def policy_loss(loss: AnyLoss, **settings: Any) -> Callable[..., tuple[Tensor, dict[str, float]]]:
    """`loss` as a policy loss of SkyRL: fn(log_probs, old_log_probs, advantages, config, loss_mask, rollout_logprobs).

    SkyRL divides advantages by what its `loss_reduction` says, over the mini-batch, and adds up what a policy loss returns. So
    a sum over tokens is returned, and a loss must be proportional to its advantages, token by token: any positive factor of
    them comes out of it. This is tried when it is made. SkyRL adds its own KL and entropy terms. Corrections for rollouts are
    ours, of SkyRL's rollout_logprobs: policy_loss("ppo+token_truncate"). Losses whose ratio is to the rollout itself ("dppo",
    "prime_ipo", "rollout_is", "vespo") take these as their sampling_logprobs.

    Raises MissingInput for losses that read more than SkyRL gives, LossContractError for those that see more than a response
    or are not proportional to advantages, LossConfigError for a reduction, and for settings of SkyRL's that would do nothing.
    """
    made = adapted(loss, settings, "SkyRL")
    if "reduction" in settings:
        raise LossConfigError("SkyRL: its own loss_reduction is the reduction: trainer.algorithm.loss_reduction")
    check_reads(made, "SkyRL", outputs=("logprobs",), inputs=("sampling_logprobs", "advantages", "rollout_logprobs"))
    check_couples(made, ("token", "datum"), "SkyRL cuts its batch into micro-batches")
    summed = _summed(made)
    known = wanted(summed, optional=True)
    needs_rollout = is_against_rollout(made) or reads(made, "rollout_logprobs")

    def computed(
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        config: Any,
        loss_mask: Tensor | None = None,
        rollout_logprobs: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        check_values(config, _OWN_SETTINGS, "SkyRL", made)
        if needs_rollout and rollout_logprobs is None:
            raise MissingInput(
                f"{made.name} reads the rollout's logprobs, and SkyRL gives none: let the generator return them"
            )
        sampling = rollout_logprobs if is_against_rollout(made) else old_log_probs
        given = {"sampling_logprobs": sampling, "advantages": advantages, "rollout_logprobs": rollout_logprobs}
        inputs = {name: value for name, value in given.items() if name in known and value is not None}
        mask = torch.ones_like(log_probs) if loss_mask is None else loss_mask
        value, metrics = summed.on_tensors(logprobs=log_probs, mask=mask, denominator=denominators(summed, 0), **inputs)
        return value, dict(metrics)

    return computed


def _summed(loss: LossLike) -> LossLike:
    """The loss as a sum over tokens, once it has shown that it is proportional to its advantages."""
    for _, part in loss.parts:
        if part.spec.per != "token":
            raise LossContractError(
                f"SkyRL: {part.name} is one number per response, and SkyRL divides the advantages of tokens. Take a loss per token, "
                'such as "gspo_token"'
            )
    summed = remade(loss, lambda part: get_loss(part, reduction="sum"))
    if not _is_proportional(summed):
        raise LossContractError(
            f"SkyRL: {loss.name} is not proportional to its advantages, which SkyRL divides in place of the loss. Leave KL and "
            "entropy terms to SkyRL"
        )
    return summed


def _is_proportional(loss: LossLike) -> bool:
    """Whether twice the advantages give twice the loss, on and off policy, at both signs."""
    logprobs = torch.tensor([[-0.5, -2.0, -1.0, -3.0]] * 2, dtype=torch.float64)
    sampling = logprobs + torch.tensor([[0.0, 0.5, -0.3, 0.1], [0.9, -0.9, 0.0, -0.1]], dtype=torch.float64)
    advantages = torch.tensor([[1.0, 1.0, 1.0, 1.0], [-0.5, -0.5, -0.5, -0.5]], dtype=torch.float64)
    known = wanted(loss, optional=True)

    def total(scale: float) -> Tensor:
        given = {
            "sampling_logprobs": sampling.clamp(max=0),
            "advantages": scale * advantages,
            "rollout_logprobs": logprobs,
        }
        mask = torch.ones_like(logprobs)
        return loss.on_tensors(
            logprobs=logprobs, mask=mask, **{name: value for name, value in given.items() if name in known}
        )[0]

    return torch.allclose(total(2.0), 2 * total(1.0), rtol=1e-9, atol=1e-12)
