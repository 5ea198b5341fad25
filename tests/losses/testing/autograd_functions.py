"""Losses over hand-written backward passes (`torch.autograd.Function`), right ones and wrong ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lossbook.losses import safe_ratio


class Negated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return -values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class NotNegated(Negated):
    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


negated, not_negated = Negated.apply, NotNegated.apply  # bound early, as fused kernels are


class Product(torch.autograd.Function):
    """Several inputs, saved tensors, a setting without a gradient, and `once_differentiable`."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(first, second)
        ctx.factor = factor
        return first * second * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        first, second = ctx.saved_tensors
        return gradient * second * ctx.factor, gradient * first * ctx.factor, None


class Swapped(Product):
    """Gives each input the gradient of the other."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        first, second = ctx.saved_tensors
        return gradient * first * ctx.factor, gradient * second * ctx.factor, None


class ValueAndSlope(torch.autograd.Function):
    """Two outputs, of which the second has no gradient; its tensors come from NumPy."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> tuple[Tensor, Tensor]:
        array = values.detach().numpy()
        squares, slopes = torch.from_numpy(array**2), torch.from_numpy(2 * array)
        ctx.save_for_backward(slopes)
        ctx.mark_non_differentiable(slopes)
        return squares, slopes

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * ctx.saved_tensors[0]


class ExpAndSquare(torch.autograd.Function):
    """Two outputs with gradients, by `setup_context`; one of them may be unused."""

    @staticmethod
    def forward(values: Tensor) -> tuple[Tensor, Tensor]:
        return values.exp(), Product.apply(values, values, 1.0)  # type: ignore[return-value]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], output[0])

    @staticmethod
    def backward(ctx: Any, of_exp: Tensor | None, of_square: Tensor | None) -> Tensor | None:  # type: ignore[override]
        values, exps = ctx.saved_tensors
        parts = [of_exp * exps] if of_exp is not None else []
        parts += [of_square * 2 * values] if of_square is not None else []
        return sum(parts) if parts else None  # type: ignore[return-value]


class HalfSlope(ExpAndSquare):
    """Forgets the 2 of the second output."""

    @staticmethod
    def backward(ctx: Any, of_exp: Tensor | None, of_square: Tensor | None) -> Tensor | None:  # type: ignore[override]
        values, exps = ctx.saved_tensors
        parts = [of_exp * exps] if of_exp is not None else []
        parts += [of_square * values] if of_square is not None else []
        return sum(parts) if parts else None  # type: ignore[return-value]


class SingleOnly(torch.autograd.Function):
    """Takes float32 and nothing else, as a kernel would."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        if values.dtype != torch.float32:
            raise TypeError(f"the kernel takes float32, not {values.dtype}")
        ctx.save_for_backward(values)
        return values.square()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 2 * ctx.saved_tensors[0]


class SingleOnlyHalved(SingleOnly):
    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * ctx.saved_tensors[0]


class Casting(SingleOnly):
    """Takes any precision and computes in float32."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.float().square().to(values.dtype)


class CastingHalved(Casting):
    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * ctx.saved_tensors[0]


class DoubleOnly(torch.autograd.Function):
    """Takes float64 and nothing else."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        if values.dtype != torch.float64:
            raise TypeError(f"the kernel takes float64, not {values.dtype}")
        return -values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


def right(logprobs: Tensor) -> Tensor:
    return negated(logprobs)  # type: ignore[return-value]


def wrong_sign(logprobs: Tensor) -> Tensor:
    return not_negated(logprobs)  # type: ignore[return-value]


def of_two(logprobs: Tensor, sampling_logprobs: Tensor, advantages: Tensor) -> Tensor:
    ratio = safe_ratio(logprobs, sampling_logprobs)
    return -Product.apply(ratio, logprobs + advantages, 0.5)  # type: ignore[operator]


def of_two_swapped(logprobs: Tensor, advantages: Tensor) -> Tensor:
    return -Swapped.apply(logprobs * 2, advantages, 0.5)  # type: ignore[operator]


def by_a_constant_slope(logprobs: Tensor) -> Tensor:
    squares, slopes = ValueAndSlope.apply(logprobs)  # type: ignore[misc]
    return squares + slopes * logprobs


def of_both_outputs(logprobs: Tensor) -> Tensor:
    exps, squares = ExpAndSquare.apply(logprobs)  # type: ignore[misc]
    return -exps + squares


def of_one_output(logprobs: Tensor) -> Tensor:
    return ExpAndSquare.apply(logprobs)[1]  # type: ignore[index]


def of_both_outputs_halved(logprobs: Tensor) -> Tensor:
    exps, squares = HalfSlope.apply(logprobs)  # type: ignore[misc]
    return -exps + squares


def under_no_grad(logprobs: Tensor) -> Tensor:
    with torch.no_grad():
        factor = Product.apply(logprobs, logprobs, 1.0)
    return -factor * logprobs  # type: ignore[operator]


def detached_inside(logprobs: Tensor) -> Tensor:
    return -Negated.apply(logprobs.detach()) * logprobs  # type: ignore[operator]


def in_single(logprobs: Tensor) -> Tensor:
    return SingleOnly.apply(logprobs)  # type: ignore[return-value]


def in_single_halved(logprobs: Tensor) -> Tensor:
    return SingleOnlyHalved.apply(logprobs)  # type: ignore[return-value]


def casting(logprobs: Tensor) -> Tensor:
    return Casting.apply(logprobs)  # type: ignore[return-value]


def casting_halved(logprobs: Tensor) -> Tensor:
    return CastingHalved.apply(logprobs)  # type: ignore[return-value]


def in_double(logprobs: Tensor) -> Tensor:
    return DoubleOnly.apply(logprobs.double()).to(logprobs)  # type: ignore[union-attr]


def in_double_as_it_comes(logprobs: Tensor) -> Tensor:
    return DoubleOnly.apply(logprobs)  # type: ignore[return-value]
