"""`with_loss`: a subclass of one of TRL's trainers that trains on another loss."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from ...datums.errors import LossConfigError
from ..requirements import AnyLoss, adapted, check_reads
from .dpo import DPOLoss
from .grpo import GRPOLoss
from .replaced import Replaced
from .sft import SFTLoss

TrainerClass = TypeVar("TrainerClass", bound=type)
_KINDS: dict[str, type[Replaced]] = {"SFTTrainer": SFTLoss, "DPOTrainer": DPOLoss, "GRPOTrainer": GRPOLoss}


def with_loss(trainer: TrainerClass, loss: AnyLoss, **settings: Any) -> TrainerClass:
    """A subclass of TRL's SFTTrainer, DPOTrainer or GRPOTrainer (or of your own subclass) that trains on `loss`.

    SFTTrainer: losses of a model's logprobs and entropy, such as "dft". DPOTrainer: losses of pairs, and of datums with a
    `label`; `ref_logprobs` come from its reference. GRPOTrainer: losses of `sampling_logprobs` and `advantages`;
    `ref_logprobs` where `beta` loads a reference, `rollout_logprobs` where vLLM samples.

    A step is divided by the count over all its micro-batches on all processes, as the loss's reduction says. Settings of the
    TRL config that belong to TRL's loss must keep their defaults: LossConfigError names the first that does not, when the
    trainer is made. The loss's metrics are logged as "lossbook/...".
    """
    kind = next((_KINDS[base.__name__] for base in trainer.__mro__ if _is_ours(base)), None)
    if kind is None:
        raise LossConfigError(
            f"{trainer.__name__} is none of TRL's {', '.join(_KINDS)}. For transformers' Trainer: "
            "lossbook.integrations.transformers.with_loss"
        )
    made = adapted(loss, settings, trainer.__name__)
    check_reads(made, trainer.__name__, outputs=("logprobs", "entropy"), inputs=kind.gives)
    return cast(TrainerClass, type(trainer.__name__, (kind, trainer), {"lossbook_loss": made}))


def _is_ours(base: type) -> bool:
    return base.__name__ in _KINDS and base.__module__.startswith("trl.trainer.")
