"""A loss over the batch that an optimizer step of transformers' Trainer sees: all its micro-batches, on all processes.

A Trainer cuts that batch twice, into processes and into micro-batches, and adds up gradients. Sums over the parts divided by
a count over the whole give the whole's gradient whatever the cut. So the count is made first, from the batches that the
Trainer has fetched for the step, and added up over the processes; data-parallel wrappers average gradients, so each process
multiplies its loss by their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ..datums.errors import LossConfigError
from ..losses.loss.loss import LossLike
from .requirements import check_couples, check_default

if TYPE_CHECKING:
    from typing import Any as Base  # the Trainer behind it, known when `with_loss` joins the two
else:
    Base = object


class Accumulated(Base):
    """Above a Trainer in the order of bases: gives `share`, the loss of one micro-batch as a part of the step's.

    A class below it says how a batch is counted (`count_of`) and calls `share` in `compute_loss`.
    """

    lossbook_loss: ClassVar[LossLike]
    #: The Trainer must not divide by the number of micro-batches again.
    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._step_batches: list[Any] = []
        self._step_count: Any = None
        self._step_metrics: list[Any] = []
        check_trainer(self, self.lossbook_loss)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of the coming optimizer step, as the Trainer fetches them; they are counted at its first loss."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._step_batches, self._step_count = batches, None
        return batches, items

    def step_batches(self) -> list[Any]:
        """All micro-batches of this process's coming step."""
        return self._step_batches

    def count_of(self, batch: Any) -> Any:
        """What one batch adds to the denominator."""
        raise NotImplementedError

    def step_count(self) -> Tensor:
        """The denominator of the coming step: of all its micro-batches, on all processes."""
        count = sum(self.count_of(batch) for batch in self.step_batches())
        return self.accelerator.reduce(count, reduction="sum")

    def share(self, method: str, *tensors: Tensor, **inputs: Any) -> Tensor:
        """The loss of one micro-batch over the count of the whole step; in evaluation, over its own.

        method: `on_tensors` or `on_logits` of the loss.
        """
        call = getattr(self.lossbook_loss, method)
        if not self.model.training:
            return call(*tensors, **inputs)[0]
        if self._step_count is None:
            self._step_count = self.step_count()
        value, metrics = call(*tensors, denominator=self._step_count, **inputs)
        self._step_metrics.append(metrics)
        return value * self.accelerator.num_processes

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Beside what the Trainer logs, the loss's metrics since the last time, merged over micro-batches and processes."""
        if self._step_metrics and "loss" in logs:
            metrics: Any = sum(self._step_metrics)
            self._step_metrics = []
            if self.accelerator.num_processes > 1:
                metrics = metrics.all_reduce(device=self.accelerator.device)
            logs.update({f"lossbook/{name}": value for name, value in metrics.items()})
        super().log(logs, *args, **kwargs)


def check_trainer(trainer: Any, loss: LossLike) -> None:
    """Raise for what would make the count another than that of the step's data."""
    args, name = trainer.args, type(trainer).__name__
    base = next(one for one in type(trainer).__mro__ if one.__module__ == "transformers.trainer")
    if not hasattr(base, "loss_is_scaled_for_ga"):
        raise LossConfigError(
            f"{name}: with_loss needs transformers>=5.19, which lets a loss count its own denominator"
        )
    check_default(args, ("label_smoothing_factor",), name, loss)
    if trainer.compute_loss_func is not None:
        raise LossConfigError(f"{name}: compute_loss_func and {loss.name} are two losses; give one")
    if args.n_gpu > 1:
        raise LossConfigError(
            f"{name}: DataParallel over {args.n_gpu} GPUs is not supported: start it with torchrun or accelerate"
        )
    sizes = {
        axis: getattr(trainer, f"get_{axis}_size")()
        for axis in ("tp", "cp", "sp")
        if hasattr(trainer, f"get_{axis}_size")
    }
    if split := {axis: size for axis, size in sizes.items() if size != 1}:
        raise LossConfigError(
            f"{name}: processes that share one batch ({', '.join(f'{axis} = {size}' for axis, size in split.items())}) are not "
            "supported: counts would hold it more than once"
        )
    if args.gradient_accumulation_steps > 1 or args.world_size > 1:
        check_couples(
            loss,
            ("token", "datum", "pair"),
            f"{args.gradient_accumulation_steps} micro-batches on {args.world_size} processes would each be a batch of its "
            "own: use one micro-batch on one process",
        )


def pop_inputs(inputs: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Those of `names` that a batch carries, taken out of it."""
    return {name: inputs.pop(name) for name in names if name in inputs}


def shifted(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs per token, given beside the token that they speak of, moved to the position that predicts it: [B, T] to [B, T-1]."""
    return {name: value[:, 1:] if getattr(value, "ndim", 0) > 1 else value for name, value in inputs.items()}
