"""Losses over whole distributions: the function is called on a tile of positions at a time, and its gradient is added up there.

A loss per token that couples none is a sum over positions, so that tiles give its value, metrics and gradient, whatever the
size of the vocabulary. What each position's value is multiplied by (weights, and the lengths of sequences) is known from data,
so that the gradient of the total is made in the forward, while a tile's logits are there: nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...datums.errors import LossContractError
from .. import stats
from ..batch.vocabulary import Distributions, Tile, is_whole, tiles
from ..spec.spec import LossSpec
from ..spec.vocabulary import STUDENT, TEACHER
from ..stats import Stat
from .leaves import other_leaves

#: (the function's arguments by name) to its values and metrics, checked.
Called = Callable[[Mapping[str, Any]], tuple[Tensor, dict[str, Stat]]]


@dataclass
class InTiles:
    """A loss over whole distributions at some positions.

    arguments: what its function takes, by name: distributions, and tensors with a row per position. called: calls it. total:
    from its values [T] to their total. metrics: those of the last `evaluated` or `values`.
    """

    spec: LossSpec
    arguments: Mapping[str, Any]
    called: Called
    total: Callable[[Tensor], Tensor]
    metrics: dict[str, Stat] = field(default_factory=dict)

    @property
    def student(self) -> Distributions:
        """The distributions that a gradient reaches."""
        return self.arguments[STUDENT]

    @property
    def others(self) -> list[str]:
        """The model's other outputs, which a gradient reaches too."""
        return [name for name in self.spec.outputs if name not in (STUDENT, TEACHER)]

    def evaluated(self) -> Tensor:
        """The total, 0-d, with its graph; fills `metrics`."""
        leaves = [*self.student.tensors, *(self.arguments[name] for name in self.others)]
        if torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves):
            return _Total.apply(self, *leaves)  # type: ignore[no-any-return]
        return self.total(self.values())

    def values(self, gradients: _Gradients | None = None) -> Tensor:
        """[T], what the function returns, without a graph; fills `metrics`. gradients: adds those of the total up."""
        values: list[Tensor] = []
        parts: list[dict[str, Stat]] = []
        wholes = [one for name in (STUDENT, TEACHER) if is_whole(one := self.arguments.get(name))]
        rows = min(one.tile_rows for one in wholes)  # type: ignore[union-attr]
        for part in tiles(len(self.student), rows):
            tile = self.student.tile(part)
            given = {name: _at(one, part) for name, one in self.arguments.items() if name != STUDENT}
            if TEACHER in given:
                given[TEACHER] = given[TEACHER].to(tile.logprobs)
            if gradients is None:
                value, metrics = self.called({**given, STUDENT: tile.logprobs})
            else:
                value, metrics = gradients.of_tile(tile, part, given)
            values.append(value.detach())
            parts.append(metrics)
        self.metrics = stats.merge(parts)
        return torch.cat(values)


def _at(value: Any, part: slice) -> Any:
    if value is None:
        return None
    return value[part] if isinstance(value, Tensor) else value.tile(part).logprobs


class _Gradients:
    """d total / d the student's tensors and the model's other outputs, added up tile by tile."""

    def __init__(self, loss: InTiles) -> None:
        self._loss, self._sums = loss, loss.student.sums()
        self._others = {name: torch.zeros_like(loss.arguments[name]) for name in loss.others}
        first = loss.student.tensors[0]
        dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        with torch.enable_grad():
            values = torch.zeros(len(loss.student), dtype=dtype, device=first.device, requires_grad=True)
            (self._share,) = torch.autograd.grad(loss.total(values), values)

    def of_tile(self, tile: Tile, part: slice, given: Mapping[str, Any]) -> tuple[Tensor, dict[str, Stat]]:
        """The function's values and metrics at a tile, whose gradient is added."""
        with torch.enable_grad():
            own = {STUDENT: tile.logprobs, **{name: given[name] for name in self._others}}
            leaves = {name: one.detach().requires_grad_() for name, one in own.items()}
            value, metrics = self._loss.called({**given, **leaves})
            if not value.requires_grad:
                return value, metrics
            _check_holds_none(self._loss.spec, value, leaves)
            share = self._share[part].to(value)
            slopes = torch.autograd.grad(value, list(leaves.values()), share, allow_unused=True)
        for name, slope in zip(leaves, slopes, strict=True):
            if slope is not None and name == STUDENT:
                self._sums.add(tile, slope)
            elif slope is not None:
                self._others[name][part] = slope
        return value, metrics

    def finished(self) -> list[Tensor | None]:
        """In the order of the leaves."""
        return [*self._sums.finished(), *self._others.values()]


def _check_holds_none(spec: LossSpec, value: Tensor, leaves: Mapping[str, Tensor]) -> None:
    if own := other_leaves(value, list(leaves.values())):
        raise LossContractError(
            f"{spec.name} holds a parameter of shape {list(own[0].shape)}, but a loss over whole distributions is called on a few "
            "positions at a time, and parameters of its own get no gradient there: make it a fixed number"
        )


class _Total(torch.autograd.Function):
    """A loss in tiles and its leaves -> the total. Their gradients are there after the forward, up to a factor."""

    @staticmethod
    def forward(ctx: Any, loss: InTiles, *leaves: Tensor):
        gradients = _Gradients(loss)
        total = loss.total(loss.values(gradients))
        ctx.gradients = gradients.finished()
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor):  # type: ignore[override]
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise LossContractError(
                "a loss over whole distributions makes its gradient in the forward and gives it once: do not go backward twice"
            )
        return None, *(None if one is None else one.mul_(slopes[0].to(one)) for one in gradients)
