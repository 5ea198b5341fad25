"""The gradient of a loss: with respect to the model's outputs, and to parameters of the loss itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import NonDifferentiableLossError, NonFiniteLossError
from ...losses.batch.checks import locate
from ...losses.batch.outputs import Outputs
from ...losses.loss.bound import BoundLoss


@dataclass
class OwnGradients:
    """Gradients of the parameters that a loss holds, such as a learnable temperature, over the micro-batches of a call.

    They are added to the parameters' `.grad`, as `loss.backward()` would, once the whole call has succeeded.
    """

    sums: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def add(self, parameters: list[Tensor], gradients: list[Tensor], name: str) -> None:
        """Add one micro-batch's. Raises NonFiniteLossError where one is not finite."""
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if not bool(torch.isfinite(gradient).all()):
                raise NonFiniteLossError(
                    f"{name}: the gradient of its own parameter of shape {list(parameter.shape)} is not finite. Nothing was "
                    "changed"
                )
            _, before = self.sums.get(id(parameter), (parameter, None))
            self.sums[id(parameter)] = parameter, gradient if before is None else before + gradient

    def apply(self) -> None:
        """Add them to the parameters' gradients: all sums are computed before any is set."""
        new = [(p, gradient if p.grad is None else p.grad + gradient) for p, gradient in self.sums.values()]
        for parameter, gradient in new:
            parameter.grad = gradient


def output_gradients(
    value: Tensor, leaves: Outputs, bound: BoundLoss, lengths: np.ndarray, own: OwnGradients
) -> dict[str, Tensor]:
    """d value / d outputs by output name; d value / d the loss's own parameters is added to `own`.

    Raises when the loss does not depend on the outputs, or where gradients are not finite.
    """
    tensors = {name: getattr(leaves, name) for name in bound.outputs}
    if not value.requires_grad:
        raise NonDifferentiableLossError(
            f"{bound.name}: the loss does not depend on its {' or '.join(tensors)}, so nothing would be learned. Was it "
            "computed under no_grad, or from .detach(), .item() or torch.tensor(...) of them?"
        )
    parameters = _other_leaves(value, list(tensors.values()))
    computed = torch.autograd.grad(value, [*tensors.values(), *parameters], allow_unused=True)
    computed, of_parameters = computed[: len(tensors)], computed[len(tensors) :]
    if all(gradient is None for gradient in computed):
        raise NonDifferentiableLossError(
            f"{bound.name}: the loss has a graph, but it does not lead to its {' or '.join(tensors)}, so nothing would be "
            "learned. Does it read a copy made with torch.tensor(...) or .detach()?"
        )
    gradients: dict[str, Tensor] = {}
    for (name, leaf), gradient in zip(tensors.items(), computed, strict=True):
        gradients[name] = torch.zeros_like(leaf) if gradient is None else gradient
        finite = torch.isfinite(gradients[name])
        finite = finite if finite.ndim == 1 else finite.all(1)
        if not bool(finite.all()):
            raise NonFiniteLossError(_not_finite(bound, name, int((~finite).nonzero()[0]), leaves, lengths))
    own.add(parameters, list(of_parameters), bound.name)
    return gradients


def _other_leaves(value: Tensor, known: list[Tensor]) -> list[Tensor]:
    """The tensors at the ends of a graph, apart from the known ones."""
    waiting: list[Any] = [value.grad_fn]
    visited: set[Any] = set()
    leaves: dict[int, Tensor] = {}
    skipped = {id(one) for one in known}
    while waiting:
        node = waiting.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        leaf = getattr(node, "variable", None)  # of the nodes that accumulate into a leaf
        if leaf is not None and id(leaf) not in skipped:
            leaves[id(leaf)] = leaf
        waiting += [following for following, _ in node.next_functions]
    return list(leaves.values())


def _not_finite(bound: BoundLoss, name: str, row: int, leaves: Outputs, lengths: np.ndarray) -> str:
    """The message for a gradient that is not finite at one row of output `name`."""
    value = getattr(leaves, name)[row].tolist()
    if name == "embeddings" or leaves.active is None:
        return f"{bound.name}: the gradient of the loss is not finite at the {name} of datum {leaves.number(row)}"
    datum, position = locate(row, leaves.active.cpu().numpy(), lengths)
    return (
        f"{bound.name}: the gradient of the loss is not finite at position {position} of datum "
        f"{leaves.number(datum)}, where {name} is {value}. Nothing was changed. Does the loss take exp or log of an unbounded number?"
    )
