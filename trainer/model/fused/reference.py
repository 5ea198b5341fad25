"""The kernels' formulas in plain torch, each as one operation: the slow twin that tests and counts on a CPU run.

Where Liger's functions launch something beside their kernel (a buffer of zeros, a sum over parts, a copy), these do too, and
like Liger's the rotation writes over its inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import custom_op
from torch.nn.functional import gelu, silu

from .kernels import Kernels


def reference_kernels() -> Kernels:
    """Kernels for any device and any floating dtype; all but products is computed in float32, as in Liger's."""
    return Kernels(
        "reference",
        _RmsNorm.apply,
        _Rotate.apply,
        {name: _gated(name) for name in ACTIVATIONS},
        {"silu": lambda both: _Halves.apply(both)},
    )


ACTIVATIONS = {"silu": silu, "gelu_tanh": lambda x: gelu(x, approximate="tanh")}
#: (incoming gradient, input) -> the input's gradient
SLOPES = {
    "silu": torch.ops.aten.silu_backward,
    "gelu_tanh": lambda incoming, x: torch.ops.aten.gelu_backward(incoming, x, approximate="tanh"),
}


@custom_op("lossbook_reference::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float, casting: str) -> tuple[Tensor, Tensor]:
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    unit = wide * scale
    if casting == "llama":
        return unit.to(x.dtype) * (weight + offset), scale
    return (unit * (weight.float() + offset)).to(x.dtype), scale


@custom_op("lossbook_reference::rms_norm_backward", mutates_args={"x_gradient"})
def _rms_norm_backward(
    upstream: Tensor, x: Tensor, weight: Tensor, scale: Tensor, offset: float, x_gradient: Tensor
) -> Tensor:
    unit = x.float() * scale
    wide = upstream.float()
    slope = wide * (weight.float() + offset)
    x_gradient.copy_(scale * (slope - unit * (slope * unit).mean(-1, keepdim=True)))
    return (wide * unit).reshape(-1, x.shape[-1]).sum(0, keepdim=True)  # [1, d]; a GPU gives one row per multiprocessor


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float, casting: str):
        x = x.contiguous()
        normed, scale = _rms_norm(x, weight, eps, offset, casting)
        ctx.save_for_backward(x, weight, scale)
        ctx.offset = offset
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor):  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        x_gradient = torch.zeros_like(upstream)
        parts = _rms_norm_backward(upstream.contiguous(), x, weight, scale, ctx.offset, x_gradient)
        weight_gradient = parts.sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return x_gradient, weight_gradient, None, None, None


@custom_op("lossbook_reference::rotate", mutates_args={"q", "k"})
def _rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool) -> None:
    """q, k [B, T, heads, D], by cos and sin [1 or B, T, R]."""
    half = cos.shape[-1] // 2
    cosine, sine = (each[:, :, None, :half].to(torch.promote_types(each.dtype, q.dtype)) for each in (cos, sin))
    sine = -sine if back else sine
    for tensor in (q, k):
        left, right = tensor[..., :half].clone(), tensor[..., half : 2 * half].clone()
        tensor[..., :half] = left * cosine - right * sine
        tensor[..., half : 2 * half] = right * cosine + left * sine


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor):
        q, k = (each.transpose(1, 2).contiguous() for each in (q, k))
        cos, sin = cos.contiguous(), sin.contiguous()
        _rotate(q, k, cos, sin, False)
        ctx.save_for_backward(cos, sin)
        return q.transpose(1, 2), k.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, q_upstream: Tensor, k_upstream: Tensor):  # type: ignore[override]
        q, k = (each.transpose(1, 2).contiguous() for each in (q_upstream, k_upstream))
        _rotate(q, k, *ctx.saved_tensors, True)
        return q.transpose(1, 2), k.transpose(1, 2), None, None


@custom_op("lossbook_reference::gated", mutates_args=())
def _multiply(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    return ACTIVATIONS[activation](gate.float()).to(up.dtype) * up


@custom_op("lossbook_reference::gated_backward", mutates_args=())
def _multiply_backward(upstream: Tensor, gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    wide, incoming = gate.float(), upstream.float()
    activated = ACTIVATIONS[activation](wide)
    return SLOPES[activation](incoming * up, wide).to(gate.dtype), (incoming * activated).to(up.dtype)


def _gated(activation: str) -> Any:
    return lambda gate, up: _Gated.apply(gate, up, activation)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: str):
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return _multiply(gate.contiguous(), up.contiguous(), activation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor):  # type: ignore[override]
        return *_multiply_backward(upstream.contiguous(), *ctx.saved_tensors, ctx.activation), None


@custom_op("lossbook_reference::halves", mutates_args=())
def _multiply_halves(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    return silu(gate.float()).to(up.dtype) * up


@custom_op("lossbook_reference::halves_backward", mutates_args=())
def _multiply_halves_backward(upstream: Tensor, both: Tensor) -> Tensor:
    gate, up = both.float().chunk(2, dim=-1)
    incoming = upstream.float()
    return torch.cat([SLOPES["silu"](incoming * up, gate), incoming * silu(gate)], dim=-1).to(both.dtype)


class _Halves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor):
        ctx.save_for_backward(both)
        return _multiply_halves(both.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor):  # type: ignore[override]
        return _multiply_halves_backward(upstream.contiguous(), *ctx.saved_tensors)
