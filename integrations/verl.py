"""Losses in verl: a function with the signature that its `register_policy_loss` asks for.

    # my_losses.py, imported by every worker with VERL_USE_EXTERNAL_MODULES=my_losses
    from lossbook.integrations.verl import policy_loss
    from verl.trainer.ppo.core_algos import register_policy_loss
    register_policy_loss("lossbook_dapo")(policy_loss("dapo"))

and `actor_rollout_ref.actor.policy_loss.loss_mode=lossbook_dapo`. Written for verl 0.9.1; verl itself is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..datums.errors import LossConfigError
from ..losses.loss.loss import Loss, LossLike
from ..losses.registry import get_loss
from .requirements import AnyLoss, adapted, check_couples, check_reads, check_values, denominators, remade, wanted

#: verl's word for a reduction of ours that has another name.
_MODES = {"token-sum": "sum"}
#: Settings of verl's own losses, with their defaults.
_OWN_SETTINGS = {"clip_ratio": 0.2, "clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_c": 3.0}

PolicyLoss = Callable[..., tuple[Tensor, dict[str, Any]]]


def policy_loss(loss: AnyLoss, **settings: Any) -> PolicyLoss:
    """`loss` as a policy loss of verl: fn(old_log_prob, log_prob, advantages, response_mask, loss_agg_mode, config, rollout_is_weights).

    verl's `loss_agg_mode` is the reduction ("token-sum" is "sum"), and its counts over the whole mini-batch on all ranks are the
    denominator, so micro-batches and data parallelism change nothing. A loss of whole responses, such as "gspo", is their
    mean, for which verl's mode must be "seq-mean-token-mean". verl adds its own KL and entropy terms to what this returns.
    `rollout_is_weights` multiply each token's loss. Metrics are named "actor/...".

    Raises MissingInput for losses that read more than old log-probabilities and advantages, LossContractError for those that
    see a whole batch, LossConfigError for another reduction than verl's, or for clip ratios of verl's that would do nothing.
    """
    made = adapted(loss, settings, "verl")
    check_reads(made, "verl", outputs=("logprobs",), inputs=("sampling_logprobs", "advantages"))
    check_couples(made, ("token", "datum"), "verl cuts its batch into micro-batches")
    known = wanted(made, optional=True)

    def computed(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        check_values(config, _OWN_SETTINGS, "verl", made)
        whole: Mapping[str, Any] = getattr(config, "global_batch_info", None) or {}
        asked = settings.get("reduction")
        reduced = _reduced(made, loss_agg_mode, whole.get("loss_scale_factor"), asked)
        mask = response_mask.to(log_prob.dtype)
        ranks = whole.get("dp_size") or 1
        denominator = _denominator(reduced, loss_agg_mode, whole)
        if rollout_is_weights is not None:
            _check_weighable(reduced)
            if denominator is None:
                denominator = reduced.count_tensors(mask=mask)
            mask = mask * rollout_is_weights
        given = {"sampling_logprobs": old_log_prob, "advantages": advantages}
        inputs = {name: value for name, value in given.items() if name in known}
        value, metrics = reduced.on_tensors(logprobs=log_prob, mask=mask, denominator=denominator, **inputs)
        return value * ranks, {f"actor/{name}": number for name, number in metrics.items()}

    return computed


def _reduced(loss: LossLike, mode: str, scale: float | None, asked: str | None) -> LossLike:
    """The loss under verl's reduction."""
    reduction = _MODES.get(mode, mode)
    if asked is not None and asked != reduction:
        raise LossConfigError(
            f"verl: loss_agg_mode={mode!r} is the reduction, and {loss.name} was given {asked!r}: set them equal"
        )
    length = {}
    if reduction == "seq-mean-token-sum-norm":
        if scale is None:
            raise LossConfigError(
                "verl: 'seq-mean-token-sum-norm' divides by loss_scale_factor tokens: set it in the actor's config"
            )
        length = {"norm_length": int(scale)}

    def change(part: Loss) -> Loss:
        if part.spec.per == "token":
            return get_loss(part, reduction=reduction, **length)
        if mode != "seq-mean-token-mean":
            raise LossConfigError(
                f"verl: {part.name} is one number per response, of which loss_agg_mode={mode!r} is no mean: set 'seq-mean-token-mean'"
            )
        return part

    return remade(loss, change)


def _denominator(loss: LossLike, mode: str, whole: Mapping[str, Any]) -> Tensor | None:
    """What the whole mini-batch counts, by verl; None where it has not counted."""
    if mode == "token-sum":
        return denominators(loss, 0)
    key = "batch_num_tokens" if mode == "token-mean" else "global_batch_size"
    if (count := whole.get(key)) is None:
        if (whole.get("dp_size") or 1) > 1:
            raise LossConfigError(f"verl: {key} must be known where ranks share a batch")
        return None
    lengths = {part.norm_length or 1 for _, part in loss.parts}
    return denominators(loss, float(count) * max(lengths))


def _check_weighable(loss: LossLike) -> None:
    for _, part in loss.parts:
        if part.spec.per != "token" or part.reduction == "seq-mean-token-mean":
            raise LossConfigError(
                f"verl: rollout_is_weights multiply tokens, and {part.name} under {part.reduction!r} divides by a response's "
                "own weight: turn verl's rollout correction off"
            )
