"""Matrix products in float32 on a CPU, through the faster of the two libraries that torch has for them.

torch multiplies float32 matrices by MKL, which does not use all that CPUs of AMD have: on Zen 4, with AVX-512, oneDNN takes 0.75
to 0.9 of its time at the head's sizes. The choice depends on the machine alone, so that the same run gives the same bits. oneDNN
gives new memory, so it is taken where that is small beside the product's work.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from ..device import path_of

#: Numbers in a sum from which on oneDNN's lead is worth a copy of the result.
LONG_SUMS = 512


def times_transposed(left: Tensor, right: Tensor, out: Tensor, *, in_place: bool) -> Tensor:
    """left [M, d] @ right [V, d]ᵀ [M, V], in `out`; unless `in_place`, memory of its own may save a copy."""
    if _through_onednn(left):
        product = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
        return out.copy_(product) if in_place else product
    return torch.mm(left, right.t(), out=out)


def add_product(total: Tensor, left: Tensor, right: Tensor, *, is_first: bool = False) -> None:
    """total += left @ right, or total = left @ right where `is_first`; nothing is rounded to less than total's dtype."""
    beta = 0 if is_first else 1  # with 0 the uninitialised memory is not read
    if total.dtype != left.dtype and total.device.type == "cuda":
        torch.addmm(total, left, right, beta=beta, out_dtype=total.dtype, out=total)
        return
    # On a CPU rounding the product to bfloat16 before the sum would cost precision, and time too.
    left, right = left.to(total.dtype), right.to(total.dtype)
    if left.shape[1] >= LONG_SUMS and _through_onednn(left):
        product = torch.ops.mkldnn._linear_pointwise(left, right.t(), None, "none", [], "")
        total.copy_(product) if is_first else total.add_(product)
    else:
        total.addmm_(left, right, beta=beta)


def _through_onednn(left: Tensor) -> bool:
    return left.dtype == torch.float32 and path_of(left.device) == "cpu" and left.numel() > 0 and is_onednn_faster()


@functools.cache
def is_onednn_faster() -> bool:
    """Whether this CPU is AMD's with AVX-512, where MKL is slower than oneDNN."""
    if not torch.backends.mkldnn.is_available() or "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return False
    cpus = Path("/proc/cpuinfo")
    return cpus.is_file() and "AuthenticAMD" in cpus.read_text(encoding="utf-8", errors="replace")
