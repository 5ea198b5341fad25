"""Operations on each element: functions of one tensor, of two, comparisons, clamping and choosing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .signature import Operation, operation

_UNARY: dict[str, Callable[..., Tensor]] = {
    "abs": torch.abs,
    "absolute": torch.absolute,
    "neg": torch.neg,
    "negative": torch.negative,
    "positive": torch.positive,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": torch.log,
    "log2": torch.log2,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "square": torch.square,
    "reciprocal": torch.reciprocal,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "asin": torch.asin,
    "acos": torch.acos,
    "atan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "asinh": torch.asinh,
    "acosh": torch.acosh,
    "atanh": torch.atanh,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "erfinv": torch.erfinv,
    "lgamma": torch.lgamma,
    "digamma": torch.digamma,
    "i0": torch.i0,
    "sinc": torch.sinc,
    "sign": torch.sign,
    "sgn": torch.sgn,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "trunc": torch.trunc,
    "frac": torch.frac,
    "relu": torch.relu,
    "deg2rad": torch.deg2rad,
    "rad2deg": torch.rad2deg,
    "isnan": torch.isnan,
    "isinf": torch.isinf,
    "isfinite": torch.isfinite,
    "isposinf": torch.isposinf,
    "isneginf": torch.isneginf,
    "signbit": torch.signbit,
    "logical_not": torch.logical_not,
    "bitwise_not": torch.bitwise_not,
}
_BINARY: dict[str, Callable[..., Tensor]] = {
    "mul": torch.mul,
    "multiply": torch.multiply,
    "true_divide": torch.true_divide,
    "floor_divide": torch.floor_divide,
    "fmod": torch.fmod,
    "eq": torch.eq,
    "ne": torch.ne,
    "not_equal": torch.not_equal,
    "lt": torch.lt,
    "less": torch.less,
    "le": torch.le,
    "less_equal": torch.less_equal,
    "gt": torch.gt,
    "greater": torch.greater,
    "ge": torch.ge,
    "greater_equal": torch.greater_equal,
}
#: Of two tensors.
_TENSORS: dict[str, Callable[..., Tensor]] = {
    "atan2": torch.atan2,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "logaddexp": torch.logaddexp,
    "logaddexp2": torch.logaddexp2,
    "hypot": torch.hypot,
    "heaviside": torch.heaviside,
}
#: A number may stand first in the function, never in the method.
_POWERS: dict[str, Callable[..., Tensor]] = {"pow": torch.pow, "float_power": torch.float_power}
_EITHER: dict[str, Callable[..., Tensor]] = {
    "remainder": torch.remainder,
    "copysign": torch.copysign,
    "xlogy": torch.xlogy,
    "bitwise_and": torch.bitwise_and,
    "bitwise_or": torch.bitwise_or,
    "bitwise_xor": torch.bitwise_xor,
}
#: torch.special: the name that people write, and torch's own on the wire.
_SPECIAL: dict[str, Callable[..., Tensor]] = {
    "entr": torch.special.entr,
    "expit": torch.special.expit,
    "expm1": torch.special.expm1,
    "exp2": torch.special.exp2,
    "log1p": torch.special.log1p,
    "erf": torch.special.erf,
    "erfc": torch.special.erfc,
    "erfcx": torch.special.erfcx,
    "erfinv": torch.special.erfinv,
    "gammaln": torch.special.gammaln,
    "digamma": torch.special.digamma,
    "psi": torch.special.psi,
    "i0": torch.special.i0,
    "i0e": torch.special.i0e,
    "i1": torch.special.i1,
    "i1e": torch.special.i1e,
    "ndtr": torch.special.ndtr,
    "ndtri": torch.special.ndtri,
    "log_ndtr": torch.special.log_ndtr,
    "sinc": torch.special.sinc,
    "round": torch.special.round,
}
_SPECIAL_BINARY: dict[str, Callable[..., Tensor]] = {"xlogy": torch.special.xlogy, "xlog1py": torch.special.xlog1py}


def _where(condition: Tensor, input: Any, other: Any) -> Tensor:
    return torch.where(condition, input, other)


def _method_where(input: Tensor, condition: Tensor, other: Any) -> Tensor:
    return torch.where(condition, input, other)


def _pairs(table: dict[str, Callable[..., Tensor]], signature: str) -> list[Operation]:
    return [operation(f"torch.{name}", call, signature, methods=name) for name, call in table.items()]


def _special(table: dict[str, Callable[..., Tensor]], signature: str) -> list[Operation]:
    return [
        operation(f"torch.special.{name} torch._C._special.special_{name}", call, signature)
        for name, call in table.items()
    ]


OPERATIONS: tuple[Operation, ...] = (
    *_pairs(_UNARY, "input:T, *, out:NO?"),
    *_pairs(_BINARY, "input:T, other:X, *, out:NO?"),
    *_pairs(_TENSORS, "input:T, other:T, *, out:NO?"),
    *_pairs(_POWERS, "input:X, exponent:X, *, out:NO?"),
    *_pairs(_EITHER, "input:X, other:X, *, out:NO?"),
    *_special(_SPECIAL, "input:T, *, out:NO?"),
    *_special(_SPECIAL_BINARY, "input:X, other:X, *, out:NO?"),
    operation("torch.add", torch.add, "input:T, other:X, *, alpha:N?, out:NO?", methods="add"),
    operation("torch.sub", torch.sub, "input:T, other:X, *, alpha:N?, out:NO?", methods="sub"),
    operation("torch.subtract", torch.subtract, "input:T, other:X, *, alpha:N?, out:NO?", methods="subtract"),
    operation("torch.rsub", torch.rsub, "input:T, other:X, *, alpha:N?"),
    operation("torch.div", torch.div, "input:T, other:X, *, rounding_mode:'floor|trunc'?, out:NO?", methods="div"),
    operation(
        "torch.divide", torch.divide, "input:T, other:X, *, rounding_mode:'floor|trunc'?, out:NO?", methods="divide"
    ),
    operation("torch.round", torch.round, "input:T, *, decimals:D?, out:NO?", methods="round"),
    operation("torch.logit", torch.logit, "input:T, eps:N?, *, out:NO?", methods="logit"),
    operation(
        "torch.special.logit torch._C._special.special_logit", torch.special.logit, "input:T, eps:N?, *, out:NO?"
    ),
    operation(
        "torch.nan_to_num",
        torch.nan_to_num,
        "input:T, nan:N?, posinf:N?, neginf:N?, *, out:NO?",
        methods="nan_to_num",
    ),
    operation("torch.lerp", torch.lerp, "input:T, end:T, weight:X, *, out:NO?", methods="lerp"),
    operation("torch.addcmul", torch.addcmul, "input:T, tensor1:T, tensor2:T, *, value:N?, out:NO?", methods="addcmul"),
    operation("torch.addcdiv", torch.addcdiv, "input:T, tensor1:T, tensor2:T, *, value:N?, out:NO?", methods="addcdiv"),
    operation("torch.isclose", torch.isclose, "input:T, other:T, rtol:N?, atol:N?, equal_nan:B?", methods="isclose"),
    operation("torch.clamp", torch.clamp, "input:T, min:X?, max:X?, *, out:NO?", methods="clamp"),
    operation("torch.clip", torch.clip, "input:T, min:X?, max:X?, *, out:NO?", methods="clip"),
    operation("torch.clamp_min", torch.clamp_min, "input:T, min:X, *, out:NO?", methods="clamp_min"),
    operation("torch.clamp_max", torch.clamp_max, "input:T, max:X, *, out:NO?", methods="clamp_max"),
    operation("torch.where", _where, "condition:T, input:X, other:X, *, out:NO?"),
    operation("", _method_where, "input:T, condition:T, other:X", methods="where"),
    operation("torch.masked_fill", torch.masked_fill, "input:T, mask:T, value:X", methods="masked_fill"),
)
