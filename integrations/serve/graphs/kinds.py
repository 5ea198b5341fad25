"""Kinds of values in a graph, and whether a value is one: each argument of each operation has a kind.

Nothing that is not named here gets to an operation. Strings are arguments only where an operation lists them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Bounds of whole numbers: of sizes and literals, and of what arithmetic on them gives.
MOST_SIZE, MOST_WHOLE = 2**31, 2**53
#: Bounds of lists: of numbers and dimensions, and of tensors (also those that an operation returns).
MOST_DIMENSIONS, MOST_TENSORS = 8, 1024
_EQUATION = re.compile(r"[a-zA-Z,.> -]{1,64}")
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float": torch.float32,
    "float64": torch.float64,
    "double": torch.float64,
    "float16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "short": torch.int16,
    "int32": torch.int32,
    "int": torch.int32,
    "int64": torch.int64,
    "long": torch.int64,
    "bool": torch.bool,
}
_DTYPES = frozenset(DTYPES.values())


class Problem(Exception):
    """What is wrong with a graph, in one line; `located` says at which node."""


def one_line(problem: object) -> str:
    """A problem's words for a client: one line, bounded, whatever a graph's names and torch's own words contain."""
    return "".join(one if one.isprintable() else "?" for one in str(problem)[:400])


@dataclass(frozen=True)
class Ref:
    """The result of an earlier node."""

    name: str


@dataclass(frozen=True)
class Device:
    """Any device that a graph names: it always means the device of the logprobs."""


DEVICE = Device()


@dataclass(frozen=True)
class Layout:
    """A layout or a memory format, which have no effect on numbers."""


LAYOUT = Layout()


def is_number(value: Any) -> bool:
    """Whether it is a Python number, and nothing derived from one."""
    return type(value) in (int, float, bool)


def is_whole(value: Any) -> bool:
    """Whether it is an int that may be a size, a place or a count."""
    return type(value) is int and abs(value) <= MOST_SIZE


def described(value: Any) -> str:
    """A value's kind for messages, never its content."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    names = {
        type(None): "None",
        str: "a string",
        Device: "a device",
        Layout: "a layout",
        slice: "a slice",
        int: "an int",
        bool: str(value),
    }
    return names.get(type(value), f"a {type(value).__name__}")


def _is_dimension(value: Any) -> bool:
    return type(value) is int and abs(value) <= 64


def _are_dimensions(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= MOST_DIMENSIONS and all(map(_is_dimension, value))
    return _is_dimension(value)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) <= MOST_DIMENSIONS and all(map(is_whole, value))


def _are_tensors(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and 0 < len(value) <= MOST_TENSORS
        and all(isinstance(one, Tensor) for one in value)
    )


def _is_place(value: Any) -> bool:
    """Part of an index: True where the shape of what it picks does not depend on data."""
    if isinstance(value, Tensor):
        return value.dtype in (torch.int64, torch.int32)
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return all(part is None or is_whole(part) for part in parts) and value.step != 0
    if isinstance(value, list):
        return len(value) <= MOST_TENSORS and all(map(is_whole, value))
    return value is None or value is Ellipsis or is_whole(value)


def _is_index(value: Any) -> bool:
    if isinstance(value, tuple):
        return len(value) <= MOST_DIMENSIONS and all(map(_is_place, value))
    return _is_place(value)


def _is_of_length_two(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) % 2 == 0 and _is_shape(value)


#: {code in the operations' signatures: (in words, what it takes)}.
KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "T": ("a tensor", lambda value: isinstance(value, Tensor)),
    "X": ("a tensor or number", lambda value: isinstance(value, Tensor) or is_number(value)),
    "N": ("a number", is_number),
    "I": ("a whole number of at most 2^31", is_whole),
    "C": ("a whole number from 1 to 4096", lambda value: type(value) is int and 1 <= value <= 4096),
    "B": ("True or False", lambda value: type(value) is bool),
    "D": ("a dimension", _is_dimension),
    "DS": ("a dimension or up to 8 of them", _are_dimensions),
    "S": ("up to 8 sizes", _is_shape),
    "PAD": ("pairs of sizes", _is_of_length_two),
    "SI": ("a size or up to 8 of them", lambda value: is_whole(value) or _is_shape(value)),
    "XD": ("a dimension or a tensor", lambda value: isinstance(value, Tensor) or _is_dimension(value)),
    "DT": ("a dtype", lambda value: isinstance(value, torch.dtype) and value in _DTYPES),
    "TS": (f"up to {MOST_TENSORS} tensors", _are_tensors),
    "IDX": (
        "whole numbers, slices, None, ... or tensors of integers (a mask's result depends on data: use torch.where)",
        _is_index,
    ),
    "TO": (
        "a dtype, device or tensor",
        lambda value: isinstance(value, torch.dtype | Tensor | Device),
    ),
    "P": ("a number or 'fro'", lambda value: is_number(value) or value == "fro"),
    "EQ": (
        "an equation of letters, commas and ->",
        lambda value: type(value) is str and bool(_EQUATION.fullmatch(value)),
    ),
    "SEQ": ("a tensor, or what an operation returned", lambda value: isinstance(value, Tensor | tuple)),
    "NAME": ("a name", lambda value: type(value) is str),
    # What has no effect here, and is left out of the call.
    "DEV": ("a device", lambda value: isinstance(value, Device)),
    "LAY": ("a layout", lambda value: isinstance(value, Layout)),
    "NO": ("None", lambda value: value is None),
    "OFF": ("False", lambda value: value is False),
    "FLAG": ("True or False", lambda value: type(value) is bool),
    "ANY": ("a number", is_number),
}
DROPPED = frozenset({"DEV", "LAY", "NO", "OFF", "FLAG", "ANY"})


def check(kind: str, value: Any, what: str) -> None:
    """Raise Problem unless a value is of a kind: a code of `KINDS`, or strings between quotes, separated by |."""
    if kind.startswith("'"):
        choices = kind.strip("'").split("|")
        if type(value) is not str or value not in choices:
            raise Problem(f"{what} must be {' or '.join(map(repr, choices))}, not {described(value)}")
        return
    words, takes = KINDS[kind]
    if not takes(value):
        raise Problem(f"{what} must be {words}, not {described(value)}")
