"""Operations along dimensions: sums, means, norms, the softmax family, running sums, sorting and choosing the largest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from .signature import Operation, operation

_SUMS: dict[str, Callable[..., Any]] = {
    "sum": torch.sum,
    "nansum": torch.nansum,
    "mean": torch.mean,
    "nanmean": torch.nanmean,
}
_RUNNING: dict[str, Callable[..., Any]] = {"cumsum": torch.cumsum, "cumprod": torch.cumprod}
_LOGICAL: dict[str, Callable[..., Any]] = {"any": torch.any, "all": torch.all}
_EXTREMES: dict[str, Callable[..., Any]] = {"amax": torch.amax, "amin": torch.amin}
_PLACES: dict[str, Callable[..., Any]] = {"argmax": torch.argmax, "argmin": torch.argmin}
_SPREADS: dict[str, Callable[..., Any]] = {"var": torch.var, "std": torch.std}
_MIDDLES: dict[str, Callable[..., Any]] = {"median": torch.median, "nanmedian": torch.nanmedian}
_QUANTILES: dict[str, Callable[..., Any]] = {"quantile": torch.quantile, "nanquantile": torch.nanquantile}
_RUNNING_EXTREMES: dict[str, Callable[..., Any]] = {
    "cummax": torch.cummax,
    "cummin": torch.cummin,
    "logcumsumexp": torch.logcumsumexp,
}
_SOFTMAX: dict[str, Callable[..., Any]] = {"softmax": torch.softmax, "log_softmax": torch.log_softmax}
_SPECIAL_SOFTMAX: dict[str, Callable[..., Any]] = {
    "softmax": torch.special.softmax,
    "log_softmax": torch.special.log_softmax,
}
_NN_SOFTMAX: dict[str, Callable[..., Any]] = {
    "softmax": F.softmax,
    "log_softmax": F.log_softmax,
    "softmin": F.softmin,
}
_SIZES = "dim:DS?, keepdim:B?"


def _rows(table: dict[str, Callable[..., Any]], signature: str) -> list[Operation]:
    return [operation(f"torch.{name}", call, signature, methods=name) for name, call in table.items()]


OPERATIONS: tuple[Operation, ...] = (
    *_rows(_SUMS, f"input:T, {_SIZES}, *, dtype:DT?, out:NO?"),
    *_rows(_RUNNING, "input:T, dim:D, *, dtype:DT?, out:NO?"),
    *_rows(_RUNNING_EXTREMES, "input:T, dim:D, *, out:NO?"),
    *_rows(_LOGICAL, f"input:T, {_SIZES}, *, out:NO?"),
    *_rows(_EXTREMES, f"input:T, {_SIZES}, *, out:NO?"),
    *_rows(_PLACES, "input:T, dim:D?, keepdim:B?"),
    *_rows(_SPREADS, "input:T, dim:DS?, unbiased:B?, keepdim:B?, *, correction:I?, out:NO?"),
    *_rows(_MIDDLES, "input:T, dim:D?, keepdim:B?, *, out:NO?"),
    *_rows(
        _QUANTILES,
        "input:T, q:X, dim:D?, keepdim:B?, *, interpolation:'linear|lower|higher|midpoint|nearest'?, out:NO?",
    ),
    *_rows(_SOFTMAX, "input:T, dim:D, dtype:DT?"),
    *[
        operation(f"torch.special.{name} torch._C._special.special_{name}", call, "input:T, dim:D, dtype:DT?")
        for name, call in _SPECIAL_SOFTMAX.items()
    ],
    *[
        operation(f"torch.nn.functional.{name}", call, "input:T, dim:D, *, _stacklevel:ANY?, dtype:DT?")
        for name, call in _NN_SOFTMAX.items()
    ],
    operation("torch.prod", torch.prod, "input:T, dim:D?, keepdim:B?, *, dtype:DT?, out:NO?", methods="prod"),
    operation("torch.max", torch.max, "input:T, dim:XD?, keepdim:B?, *, other:T?, out:NO?", methods="max"),
    operation("torch.min", torch.min, "input:T, dim:XD?, keepdim:B?, *, other:T?, out:NO?", methods="min"),
    operation("torch.logsumexp", torch.logsumexp, "input:T, dim:DS, keepdim:B?, *, out:NO?", methods="logsumexp"),
    operation(
        "torch.special.logsumexp torch._C._special.special_logsumexp",
        torch.special.logsumexp,
        "input:T, dim:DS, keepdim:B?, *, out:NO?",
    ),
    operation("torch.count_nonzero", torch.count_nonzero, "input:T, dim:DS?", methods="count_nonzero"),
    operation("torch.diff", torch.diff, "input:T, n:C?, dim:D?, *, prepend:T?, append:T?, out:NO?", methods="diff"),
    operation("torch.std_mean", torch.std_mean, "input:T, dim:DS?, *, correction:I?, keepdim:B?"),
    operation("torch.var_mean", torch.var_mean, "input:T, dim:DS?, *, correction:I?, keepdim:B?"),
    operation(
        "torch.norm torch.functional.norm",
        torch.norm,
        f"input:T, p:P?, {_SIZES}, *, dtype:DT?, out:NO?",
        methods="norm",
    ),
    operation(
        "torch.linalg.vector_norm torch._C._linalg.linalg_vector_norm",
        torch.linalg.vector_norm,
        f"x:T, ord:N?, {_SIZES}, *, dtype:DT?, out:NO?",
    ),
    operation("torch.dist", torch.dist, "input:T, other:T, p:N?", methods="dist"),
    operation("torch.sort", torch.sort, "input:T, dim:D?, descending:B?, *, stable:B?, out:NO?", methods="sort"),
    operation("torch.argsort", torch.argsort, "input:T, dim:D?, descending:B?, *, stable:B?", methods="argsort"),
    operation("torch.msort", torch.msort, "input:T, *, out:NO?", methods="msort"),
    operation("torch.topk", torch.topk, "input:T, k:I, dim:D?, largest:B?, sorted:B?, *, out:NO?", methods="topk"),
    operation("torch.kthvalue", torch.kthvalue, "input:T, k:I, dim:D?, keepdim:B?, *, out:NO?", methods="kthvalue"),
)
