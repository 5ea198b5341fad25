"""What the trainers have in common: TRL's own loss function runs as ever, and the loss that it returns is replaced.

TRL prepares data, generates, rewards, and runs the model. The log-probabilities of its forward are overheard, and our loss
is computed of the same numbers. So TRL's metrics stay, and nothing of its code is repeated here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import Module

from ...datums.errors import LossConfigError, LossContractError
from ..accumulated import Accumulated


class Replaced(Accumulated):
    """A trainer of TRL with another loss; `gives`: what its batches hold for losses to read."""

    gives: tuple[str, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.aux_loss_enabled:
            raise LossConfigError(
                f"{type(self).__name__}: router_aux_loss_coef={self.router_aux_loss_coef} adds a loss of the model's router "
                f"to TRL's own, which {self.lossbook_loss.name} replaces: set it to 0"
            )

    def given(self, outputs: Any, mask: Tensor) -> dict[str, Any]:
        """`on_tensors`'s arguments for the model's outputs [B, T], and which of them count."""
        positions = slice(-mask.shape[1], None)  # without the virtual tokens of prompt tuning
        names = {"logprobs": outputs.log_probs, "entropy": outputs.entropy}
        asked = self.lossbook_loss.outputs
        return {"mask": mask} | {name: value[:, positions] for name, value in names.items() if name in asked}


@contextmanager
def overheard(model: Module) -> Iterator[list[Any]]:
    """Within, every output of `model` that has log-probabilities of labels is put on the list."""
    heard: list[Any] = []

    def keep(module: Module, inputs: Any, output: Any) -> None:
        if getattr(output, "log_probs", None) is not None:
            heard.append(output)

    hook = model.register_forward_hook(keep)
    try:
        yield heard
    finally:
        hook.remove()


def first(heard: list[Any], where: str) -> Any:
    if not heard:
        raise LossContractError(
            f"{where}: this release of TRL computes its loss without log-probabilities per token, which 1.16 has: install trl==1.16"
        )
    return heard[0]
