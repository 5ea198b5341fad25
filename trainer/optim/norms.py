"""Norms of gradients, and what may not be in them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from ...datums.errors import NonFiniteGradientError
from ..device import path_of

#: Numbers that a CPU sums at a time in float32, the fastest there; short runs keep the rounding error near 1e-7.
_NORM_RUN = 1024
#: Norms for which squares neither overflow nor underflow in the dtype of their sum; others are computed again, scaled.
_SAFE_NORMS = {torch.float32: (1e-12, 1e18), torch.float64: (1e-150, 1e150)}


def gradient_norms(with_grad: Mapping[str, Parameter]) -> dict[str, float]:
    """The 2-norm of each gradient, with one read from the device. Raises NonFiniteGradientError where one is not finite."""
    gradients = {name: p.grad.detach() for name, p in with_grad.items() if p.grad is not None}
    norms = dict(zip(gradients, _norms(list(gradients.values())), strict=True))
    bad = []
    for name, gradient in gradients.items():
        if _is_exact(norms[name], gradient):
            continue
        largest = float(gradient.abs().amax()) if gradient.numel() else 0.0
        if not math.isfinite(largest):
            bad.append(name)
        elif largest:
            norms[name] = largest * _norms([gradient / largest])[0]
    if bad:
        wrong, of = int((~torch.isfinite(gradients[bad[0]])).sum()), gradients[bad[0]].numel()
        raise NonFiniteGradientError(
            f"the gradient of {bad[0]!r} is NaN or infinite at {wrong} of {of} entries "
            f"({len(bad)} of {len(with_grad)} parameters have such). Nothing was changed: weights, moments and gradients "
            "are as before. Look at the loss of the batches since the last optim_step; load_state goes back to a "
            "checkpoint"
        )
    return norms


def _norms(gradients: Sequence[Tensor]) -> list[float]:
    """The 2-norms. One long float32 sum of 1e7 squares would be off by 4e-4, so no long sum is in float32 where there is float64."""
    path = path_of(gradients[0].device)
    parts = [_runs(gradient) if path == "cpu" else (gradient,) for gradient in gradients]
    dtype = torch.float64 if path == "cpu" else _sum_dtype(gradients[0])
    norms = torch._foreach_norm([part for one in parts for part in one], 2, dtype=dtype)  # type: ignore[attr-defined]
    values = iter(torch.stack(norms).tolist())
    return [math.hypot(*itertools.islice(values, len(one))) for one in parts]


def _runs(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The norms of a gradient's runs, and the numbers that are left over."""
    flat = gradient.reshape(-1)
    whole = len(flat) // _NORM_RUN * _NORM_RUN
    runs = flat[:whole].view(-1, _NORM_RUN)
    return torch.linalg.vector_norm(runs, dim=1, dtype=_sum_dtype(gradient)), flat[whole:]


def _sum_dtype(gradient: Tensor) -> torch.dtype:
    """The dtype in which squares are summed first: float64 on CUDA, whose kernel sums in chunks without a copy."""
    if path_of(gradient.device) == "cuda":
        return torch.float64
    return torch.promote_types(gradient.dtype, torch.float32)


def _is_exact(norm: float, gradient: Tensor) -> bool:
    """Whether no square can have overflowed or vanished in the sum that gave this norm."""
    dtype = _sum_dtype(gradient)
    if dtype == torch.float64 != gradient.dtype:  # it holds the squares of every float32
        return math.isfinite(norm)
    least, most = _SAFE_NORMS[dtype]
    return least < norm < most


def with_large_squares(
    with_grad: Mapping[str, Parameter], norms: Mapping[str, float], factor: float
) -> dict[str, Parameter]:
    """The parameters whose gradient may hold a number with an infinite square: no number exceeds the norm."""
    limits = {name: math.sqrt(torch.finfo(p.dtype).max) for name, p in with_grad.items()}
    return {name: p for name, p in with_grad.items() if not norms[name] * factor <= limits[name]}


def check_squares(with_grad: Mapping[str, Parameter], factor: float) -> None:
    """Raise NonFiniteGradientError where a finite gradient's square would be infinite in `exp_avg_sq`, for good."""
    for name, parameter in with_grad.items():
        if parameter.grad is None or not parameter.grad.numel():
            continue
        largest = float(parameter.grad.abs().amax()) * factor
        if largest > math.sqrt(torch.finfo(parameter.dtype).max):
            raise NonFiniteGradientError(
                f"the gradient of {name!r} reaches {largest:.3g}, whose square overflows {parameter.dtype}: Adam's second "
                "moment would stay infinite and the weight would never move again. Nothing was changed. Set "
                "grad_clip_norm (usual: 1.0), or look at the loss of the batches since the last optim_step"
            )
