"""The gradient of a loss: with respect to the model's outputs, and to parameters of the loss itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import LossContractError, NonDifferentiableLossError, NonFiniteLossError
from ...losses.batch.checks import locate
from ...losses.batch.outputs import Outputs
from ...losses.loss.bound import BoundLoss
from ...losses.loss.leaves import other_leaves
from ...losses.spec.layers import DATUM_OUTPUTS
from ...losses.spec.top import TOP_TOKENS
from ...losses.spec.vocabulary import STUDENT, TEACHER
from ..head.whole import HeadDistributions

#: Of whole distributions: the ends of the names of the head's weight and bias.
OF_HEAD = ("weight", "bias")


@dataclass
class OwnGradients:
    """Gradients of the parameters that a loss holds, such as a learnable temperature, over the micro-batches of a call.

    They are added to the parameters' `.grad`, as `loss.backward()` would, once the whole call has succeeded.
    """

    sums: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def add(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Add one micro-batch's."""
        for parameter, gradient in zip(parameters, gradients, strict=True):
            _, before = self.sums.get(id(parameter), (parameter, None))
            self.sums[id(parameter)] = parameter, gradient if before is None else before + gradient

    def apply(self) -> None:
        """Add them to the parameters' gradients: all sums are computed before any is set."""
        new = [(p, gradient if p.grad is None else p.grad + gradient) for p, gradient in self.sums.values()]
        for parameter, gradient in new:
            parameter.grad = gradient


@dataclass(frozen=True)
class LossGradients:
    """d value / d outputs by output name, and d value / d the loss's own parameters, on the device and not yet checked.

    is_other: [] bool, whether the gradient of a loss that is declared linear differs from the one known before the forward.
    """

    bound: BoundLoss
    outputs: dict[str, Tensor]
    parameters: list[Tensor]
    of_parameters: list[Tensor]
    is_other: Tensor | None = None

    def to_check(self) -> dict[str, Tensor]:
        """What `check` looks at: each row's largest entry, by magnitude, and a 0 for a finite gradient of a parameter."""
        named = {name: one for name, one in self.outputs.items() if not name.endswith(OF_HEAD)}
        rows = {name: one if one.ndim == 1 else one.abs().flatten(1).amax(1) for name, one in named.items()}
        own = {f"own {i}": (one * 0).sum() for i, one in enumerate(self.of_parameters)}
        own |= {f"gradient {name}": one.sum()[None] for name, one in self.outputs.items() if name not in named}
        other = {} if self.is_other is None else {"is other": self.is_other}
        return {**{f"gradient {name}": one for name, one in rows.items()}, **own, **other}

    def check(self, numbers: Mapping[str, Tensor], leaves: Outputs) -> None:
        """Raise NonFiniteLossError where a gradient is not finite, LossContractError where linear is declared wrongly.

        numbers: those of `to_check`, on the host. leaves: the outputs that the loss read, there or on the device.
        """
        for name in self.outputs:
            finite = np.isfinite(numbers[f"gradient {name}"].numpy())
            if not finite.all():
                raise NonFiniteLossError(_not_finite(self.bound, name, int(np.flatnonzero(~finite)[0]), leaves))
        for i, parameter in enumerate(self.parameters):
            if not np.isfinite(float(numbers[f"own {i}"])):
                raise NonFiniteLossError(
                    f"{self.bound.name}: the gradient of its own parameter of shape {list(parameter.shape)} is not finite. "
                    "Nothing was changed"
                )
        if self.is_other is not None and bool(numbers["is other"]):
            raise LossContractError(
                f"{self.bound.name} is declared linear, but the gradient of its logprobs depends on the logprobs: register it "
                "without linear=True"
            )


def loss_gradients(value: Tensor, leaves: Outputs, bound: BoundLoss, known: Tensor | None = None) -> LossGradients:
    """The gradients of a loss; nothing is read from the device.

    known: the gradient of the logprobs, where it was computed before the forward: it is taken, so that the head sees that it
    has used it already. Raises NonDifferentiableLossError when the loss does not depend on the outputs.
    """
    tensors = outputs_with_gradients(leaves, bound.outputs)
    if not value.requires_grad:
        raise NonDifferentiableLossError(
            f"{bound.name}: the loss does not depend on its {' or '.join(tensors)}, so nothing would be learned. Was it "
            "computed under no_grad, or from .detach(), .item() or torch.tensor(...) of them?"
        )
    parameters = other_leaves(value, list(tensors.values()))
    computed = torch.autograd.grad(value, [*tensors.values(), *parameters], allow_unused=True)
    computed, of_parameters = computed[: len(tensors)], computed[len(tensors) :]
    if all(gradient is None for gradient in computed):
        raise NonDifferentiableLossError(
            f"{bound.name}: the loss has a graph, but it does not lead to its {' or '.join(tensors)}, so nothing would be "
            "learned. Does it read a copy made with torch.tensor(...) or .detach()?"
        )
    gradients = {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(tensors.items(), computed, strict=True)
    }
    is_other = None
    if known is not None:
        is_other = (gradients["logprobs"] != known).any()
        gradients["logprobs"] = known
    return LossGradients(bound, gradients, parameters, list(of_parameters), is_other)


def check_own(bound: BoundLoss, parameters: Sequence[Tensor], ranks: int) -> None:
    """Refuse a loss with parameters of its own on several ranks: nothing keeps these alike."""
    if parameters and ranks > 1:
        raise LossContractError(
            f"{bound.name} holds a parameter of shape {list(parameters[0].shape)}, of which each of {ranks} ranks would train one "
            "of its own. Hand its function to forward_backward_custom, which calls it in one place"
        )


def outputs_with_gradients(outputs: Outputs, names: Sequence[str]) -> dict[str, Tensor]:
    """The tensors that a gradient goes to, by name; of whole distributions the hidden states, weight and bias that have one."""
    tensors: dict[str, Tensor] = {}
    for name in names:
        values = getattr(outputs, name)
        if isinstance(values, HeadDistributions):
            parts = zip((name, *(f"{name} {part}" for part in OF_HEAD)), values.tensors, strict=False)
            tensors |= {part: tensor for part, tensor in parts if tensor.requires_grad}
        elif name not in (TEACHER, TOP_TOKENS):
            tensors[name] = values
    return tensors


def _not_finite(bound: BoundLoss, name: str, row: int, leaves: Outputs) -> str:
    """The message for a gradient that is not finite at one row of output `name`."""
    if name in DATUM_OUTPUTS or leaves.active is None:
        return f"{bound.name}: the gradient of the loss is not finite at the {name} of datum {leaves.number(row)}"
    if name.startswith(STUDENT):
        return (
            f"{bound.name}: the gradient of the loss is not finite at the student's distributions. Nothing was changed. Are all "
            "weights of student and teacher finite, or does one rule out tokens that the other does not?"
        )
    value = getattr(leaves, name)[row].tolist()
    datum, position = locate(row, leaves.active.numpy(), bound.lengths)
    return (
        f"{bound.name}: the gradient of the loss is not finite at position {position} of datum "
        f"{leaves.number(datum)}, where {name} is {value}. Nothing was changed. Does the loss take exp or log of an unbounded number?"
    )
