"""Python's own operators, `math` on numbers, attributes of tensors, and indexing."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .kinds import DEVICE, Problem, described
from .shapes import check_places
from .signature import Operation, operation

#: Attributes of tensors; an attribute of anything else is a field of what torch.max, sort and their like return.
ATTRIBUTES: dict[str, Callable[[Tensor], Any]] = {
    "shape": lambda tensor: tuple(tensor.shape),
    "ndim": lambda tensor: tensor.ndim,
    "dtype": lambda tensor: tensor.dtype,
    "device": lambda tensor: DEVICE,
    "T": lambda tensor: tensor.T,
    "mT": lambda tensor: tensor.mT,
}
FIELDS = {"values": 0, "indices": 1}
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "truediv": operator.truediv,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "and_": operator.and_,
    "or_": operator.or_,
    "xor": operator.xor,
}
_UNARY: dict[str, Callable[[Any], Any]] = {"neg": operator.neg, "pos": operator.pos, "abs": operator.abs}
_MATH: dict[str, Callable[..., Any]] = {
    "sqrt": math.sqrt,
    "exp": math.exp,
    "expm1": math.expm1,
    "log2": math.log2,
    "log10": math.log10,
    "log1p": math.log1p,
    "floor": math.floor,
    "ceil": math.ceil,
    "trunc": math.trunc,
    "fabs": math.fabs,
    "tanh": math.tanh,
    "sin": math.sin,
    "cos": math.cos,
}
_MATH_BINARY: dict[str, Callable[..., Any]] = {"pow": math.pow, "atan2": math.atan2, "hypot": math.hypot}


def _pow(base: Any, exponent: Any) -> Any:
    """base ** exponent, where whole numbers stay small: bits of the base times the exponent bound the result's bits."""
    whole = all(type(one) in (int, bool) for one in (base, exponent))
    if whole and abs(exponent) * max(int(base).bit_length(), 1) > 256:
        raise Problem("operator.pow of these whole numbers is beyond 2^53")
    return operator.pow(base, exponent)


def _attribute(value: Any, name: str) -> Any:
    if isinstance(value, Tensor):
        if name in ATTRIBUTES:
            return ATTRIBUTES[name](value)
    elif name in FIELDS and type(value).__module__ == "torch.return_types" and len(value) == len(FIELDS):
        return value[FIELDS[name]]
    raise Problem(f"op not allowed: attribute {name[:64]!r} of {described(value)}")


def _item(value: Any, index: Any) -> Any:
    if isinstance(value, tuple):
        if not isinstance(index, int | slice):
            raise Problem(f"operator.getitem: {described(index)} is no place in a list")
        return value[index]
    return value[index]


def _check_index(value: Any, index: Any) -> None:
    """Indices that are tensors must lie in the dimensions that they pick from."""
    if not isinstance(value, Tensor):
        return
    parts = list(index) if isinstance(index, tuple) else [index]
    taken = sum(part is not None and part is not Ellipsis for part in parts)
    dim = 0
    for part in parts:
        if part is Ellipsis:
            dim += max(value.ndim - taken, 0)
        elif part is not None:
            if isinstance(part, Tensor) and dim < value.ndim:
                check_places(value.shape[dim], part, "operator.getitem")
            dim += 1


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    return torch.matmul(left, right)


def _invert(value: Tensor) -> Tensor:
    return torch.bitwise_not(value)


OPERATIONS: tuple[Operation, ...] = (
    *[operation(f"operator.{name}", call, "left:X, right:X") for name, call in _BINARY.items()],
    *[operation(f"operator.{name}", call, "value:X") for name, call in _UNARY.items()],
    *[operation(f"math.{name}", call, "value:N") for name, call in _MATH.items()],
    *[operation(f"math.{name}", call, "left:N, right:N") for name, call in _MATH_BINARY.items()],
    operation("math.log", math.log, "value:N, base:N?"),
    operation("operator.pow", _pow, "base:X, exponent:X"),
    operation("operator.matmul", _matmul, "left:T, right:T"),
    operation("operator.invert operator.inv", _invert, "value:T"),
    operation("operator.getitem", _item, "value:SEQ, index:IDX", guard=_check_index),
    operation("getattr", _attribute, "value:SEQ, name:NAME"),
)
