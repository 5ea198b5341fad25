"""`Kernels`: operations that a layer makes of many small ones, each fused into one; they come from liger-kernel.

Liger (Hsu et al. 2024, arXiv:2410.10989; BSD-2) writes them in Triton, which needs a GPU. `standing_in` hands over others in
their place, so that tests and counts of operations take the same path on a CPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


class Kernels(NamedTuple):
    """Fused operations, differentiable once. Any of them may write over its inputs.

    source    whose they are
    rms_norm  (x [..., d], weight [d], eps, offset, casting) -> x / rms(x) · (offset + weight). casting says where a narrow x is
              rounded: "llama" before the product with the weight, "gemma" after it
    rotate    (q [B, H, T, D], k [B, G, T, D], cos, sin [1 or B, T, R]) -> q and k with their first R numbers rotated by halves
    gated     by activation: (gate, up) -> activation(gate) · up
    halves    by activation: the same of one tensor [..., 2 n], gate first
    """

    source: str
    rms_norm: Callable[[Tensor, Tensor, float, float, str], Tensor]
    rotate: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    gated: Mapping[str, Callable[[Tensor, Tensor], Tensor]]
    halves: Mapping[str, Callable[[Tensor], Tensor]]


_standing_in: Kernels | None = None


@contextmanager
def standing_in(kernels: Kernels) -> Iterator[None]:
    """Inside, models that are loaded get these kernels, on any device and in all threads."""
    global _standing_in
    before, _standing_in = _standing_in, kernels
    try:
        yield
    finally:
        _standing_in = before


def kernels_for(device: torch.device) -> Kernels | str:
    """The kernels that run on a device, or why there are none."""
    if _standing_in is not None:
        return _standing_in
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"liger-kernel needs a GPU, not {device}"
    if not all(importlib.util.find_spec(name) for name in ("liger_kernel", "triton")):
        return "liger-kernel is not installed: pip install 'lossbook[cuda]'"
    return liger_kernels()


def liger_kernels() -> Kernels:
    """Liger's. Gradients get memory of their own: written over the incoming one, they would change what a residual gets."""
    norm = importlib.import_module("liger_kernel.ops.rms_norm").LigerRMSNormFunction.apply
    rope = importlib.import_module("liger_kernel.ops.rope").LigerRopeFunction.apply
    swiglu = importlib.import_module("liger_kernel.ops.swiglu")
    geglu = importlib.import_module("liger_kernel.ops.geglu").LigerGELUMulFunction.apply

    def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float, casting: str) -> Tensor:
        return norm(x, weight, eps, offset, casting, False, None)

    def silu_halves(both: Tensor) -> Tensor:  # its gradient is two-dimensional whatever it was given
        rows = swiglu.LigerFusedGateUpSiLUMulFunction.apply(both.reshape(-1, both.shape[-1]))
        return rows.view(*both.shape[:-1], -1)

    return Kernels(
        "liger-kernel",
        rms_norm,
        rope,
        {"silu": swiglu.LigerSiLUMulFunction.apply, "gelu_tanh": geglu},
        {"silu": silu_halves},
    )
