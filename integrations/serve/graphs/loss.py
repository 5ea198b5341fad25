"""A custom loss that came as a graph, as `TrainingClient.forward_backward_custom` takes it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ....datums.errors import LossContractError, NonFiniteLossError
from ...tinker.custom_loss import PerDatumLoss
from ...tinker.types import Datum
from ..settings import Limits
from .kinds import Problem, one_line
from .read import DEFAULT_LIMITS, Graph
from .run import check_size, evaluate, gradient_of

#: Shapes that were tried and found small enough, of one loss.
_MOST_SHAPES = 10_000


@dataclass(frozen=True)
class GraphLoss(PerDatumLoss):
    """The loss of a graph, for the training clients of one session.

    One forward and one backward of the model, as any loss. Each datum's own part is run forward and backward before the next,
    so that memory is that of one datum, and its gradient is handed on.
    """

    graph: Graph = field(repr=False, compare=False)
    limits: Limits = field(default=DEFAULT_LIMITS, repr=False, compare=False)
    #: Shapes and dtypes for which the graph is known to be small enough.
    _sizes: set[Any] = field(default_factory=set, repr=False, compare=False)

    def check(self, data: Sequence[Datum], session_id: str) -> None:
        """As every custom loss's; one number that was declared as rank 0 may come as [1]: on the wire both have no shape."""
        super().check([self._declared(datum) for datum in data], session_id)

    def __call__(self, data: Sequence[Datum], logprobs: Sequence[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The sum of the datums' losses, and each metric's sum, or mean over datums, as its name's end says.

        Raises LossContractError naming the datum and the node where the graph does not fit it, and NonFiniteLossError where
        its loss or gradient is NaN or infinite.
        """
        deadline = time.monotonic() + self.limits.graph_seconds
        with_gradient = torch.is_grad_enabled()
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        metrics: dict[str, list[Tensor]] = {name: [] for name in self.graph.metrics}
        for i, (datum, own) in enumerate(zip(data, logprobs, strict=True)):
            leaf = own.detach().requires_grad_(with_gradient)
            try:
                loss, values = self._evaluated([leaf, *self._inputs(datum, own)], deadline)
                if with_gradient:
                    gradients.append(gradient_of(loss, leaf))
            except Problem as problem:
                raise LossContractError(
                    f"custom loss {self.name!r}: datum {i} of {len(data)}: {one_line(problem)}"
                ) from None
            losses.append(loss.detach())
            for name, value in values.items():
                metrics[name].append(value)
        self._check_finite(losses, gradients)
        total = torch.stack(losses).sum()
        if with_gradient:
            total = _WithGradients.apply(total, gradients, *logprobs)
        return total, _merged(metrics, len(data))

    def _inputs(self, datum: Datum, like: Tensor) -> list[Tensor]:
        """What it reads of a datum, beside its logprobs; floats are in their dtype."""
        carried = self._declared(datum).loss_fn_inputs
        tensors = (carried[name].to_torch() for name in self.input_names)
        return [one.to(like.device, like.dtype if one.is_floating_point() else one.dtype) for one in tensors]

    def _declared(self, datum: Datum) -> Datum:
        carried = datum.loss_fn_inputs
        scalars = [one.name for one in self.inputs[1:] if one.rank == 0 and one.name in carried]
        single = {
            name: carried[name].to_torch().reshape(()) for name in scalars if list(carried[name].shape or []) == [1]
        }
        return replace(datum, loss_fn_inputs={**carried, **single}) if single else datum

    def _evaluated(self, tensors: list[Tensor], deadline: float) -> tuple[Tensor, dict[str, Tensor]]:
        key = tuple((one.shape, one.dtype) for one in tensors)
        if key not in self._sizes:
            check_size(self.graph, tensors, self.limits)
            if len(self._sizes) < _MOST_SHAPES:
                self._sizes.add(key)
        return evaluate(self.graph, tensors, deadline)

    def _check_finite(self, losses: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        for what, tensors in (("loss", losses), ("gradient", gradients)):
            if not tensors:
                continue
            finite = torch.stack([one.isfinite().all() for one in tensors])
            if not bool(finite.all()):
                i = int((~finite).nonzero()[0])
                raise NonFiniteLossError(
                    f"custom loss {self.name!r}: the {what} of datum {i} of {len(tensors)} is NaN or infinite: is there a log, a "
                    "division or an exp without a bound?"
                )


class _WithGradients(torch.autograd.Function):
    """A number whose gradient at each tensor is already known."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        return None, None, *(outer[0] * gradient for gradient in ctx.gradients)


def _merged(metrics: dict[str, list[Tensor]], count: int) -> dict[str, float]:
    """Sums or means over datums, read from the device at once."""
    if not metrics:
        return {}
    sums = torch.stack([torch.stack([one.double() for one in values]).sum() for values in metrics.values()]).tolist()
    return {name: value / count if name.endswith(":mean") else value for name, value in zip(metrics, sums, strict=True)}
