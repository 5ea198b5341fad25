"""Losses in prime-rl: `custom_loss` is what `[trainer.loss] import_path` may name, and the loss is said in its kwargs.

    [trainer.loss]
    type = "custom"
    import_path = "lossbook.integrations.prime_rl.custom_loss"
    kwargs = { loss = "dapo", clip_high = 1.28 }

Written for prime-rl's `LossInputs` and `LossOutputs` of 2026; prime-rl itself is not imported here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor

from ..datums.errors import LossConfigError, LossContractError
from ..losses.loss.loss import LossLike
from ..losses.registry import get_loss
from .requirements import adapted, check_couples, check_reads, denominators, remade, wanted

#: The fields of prime-rl's LossInputs under the names of the inputs that they are.
_FIELDS = {
    "sampling_logprobs": ("inference_logprobs",),
    "advantages": ("advantages",),
    "ref_logprobs": ("ref_logprobs", "teacher_logprobs"),
    "teacher_logprobs": ("teacher_logprobs", "ref_logprobs"),
}


class LossOutputs(NamedTuple):
    """What prime-rl reads of a custom loss: a 0-d sum, and 0-d metrics."""

    loss: Tensor
    metrics: dict[str, Tensor]


def custom_loss(inputs: Any, loss: str, **settings: Any) -> LossOutputs:
    """The sum of `loss` over one sequence, which prime-rl divides by the count of all tokens of the step.

    inputs: prime-rl's LossInputs; all tensors are [T] of one sequence. `loss_mask` times `loss_weights` are the weights. What
    prime-rl makes of it is a token-mean over the step, so this is the one reduction.

    Raises MissingInput for losses that read more than prime-rl gives, LossContractError for those that see more than a
    sequence or give one number for it, LossConfigError for another reduction.
    """
    made = _made(loss, tuple(sorted(settings.items())))
    mask = inputs.loss_mask
    weights = getattr(inputs, "loss_weights", None)
    given = {"mask": mask if weights is None else mask * weights}
    for name in wanted(made, optional=True):
        fields = _FIELDS.get(name, ())
        value = next((v for v in (getattr(inputs, field, None) for field in fields) if v is not None), None)
        if value is not None:
            given[name] = value[None]
    given["mask"] = given["mask"][None]
    total, metrics = made.on_tensors(logprobs=inputs.trainer_logprobs[None], denominator=denominators(made, 0), **given)
    return LossOutputs(total, {name: total.new_tensor(number) for name, number in metrics.items()})


@lru_cache(maxsize=32)
def _made(loss: str, settings: tuple[tuple[str, Any], ...]) -> LossLike:
    """The loss as a sum, made once for all sequences."""
    asked = dict(settings)
    if asked.pop("reduction", "token-mean") != "token-mean":
        raise LossConfigError(
            "prime-rl divides by the tokens of a step, so the reduction is 'token-mean': leave it out"
        )
    made = adapted(loss, asked, "prime-rl")
    check_reads(made, "prime-rl", outputs=("logprobs",), inputs=tuple(_FIELDS))
    check_couples(made, ("token", "datum"), "prime-rl hands over one sequence at a time")
    for _, part in made.parts:
        if part.spec.per != "token":
            raise LossContractError(f"prime-rl: {part.name} is one number per response, and prime-rl divides by tokens")
    return remade(made, lambda part: get_loss(part, reduction="sum"))
