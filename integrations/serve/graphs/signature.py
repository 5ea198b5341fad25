"""An operation that graphs may use: what is called, its names, and the kind of each argument.

A signature is text: `"input:T, dim:DS?, *, dtype:DT?"`. A question mark: may be missing or None. `*size:S`: one list, or that
many arguments. What stands behind `*` is given by name only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .kinds import DROPPED, Device, Problem, Ref, check, described

_MISSING = object()
#: Other words that torch takes for an argument.
_OTHER_WORDS = {"axis": "dim", "keepdims": "keepdim"}


@dataclass(frozen=True)
class Parameter:
    """One argument. kind: a code of `kinds.KINDS`, or choices between quotes."""

    name: str
    kind: str
    optional: bool = False
    by_name: bool = False
    variadic: bool = False


def parameters_of(text: str) -> tuple[Parameter, ...]:
    """A signature's parameters."""
    parameters, by_name = [], False
    for part in filter(None, (one.strip() for one in text.split(","))):
        if part == "*":
            by_name = True
            continue
        name, _, kind = part.partition(":")
        optional = kind.endswith("?")
        variadic = name.startswith("*")
        parameters.append(Parameter(name.lstrip("*"), kind.rstrip("?"), optional, by_name, variadic))
    return tuple(parameters)


@dataclass(frozen=True)
class Operation:
    """What one name of a graph stands for.

    name         what people write, for messages and the documents
    call         what runs
    parameters   in order
    functions    its names as functions on the wire, `name` among them
    methods      its names as methods of tensors; the tensor is the first argument
    guard        raises Problem where values that only the data show would be a fault of the device, such as an index that is
                 not there; not called for tensors without values
    makes        whether it makes a tensor from nothing, so that it must be told the device
    """

    name: str
    call: Callable[..., Any] = field(repr=False)
    parameters: tuple[Parameter, ...]
    functions: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    guard: Callable[..., None] | None = field(default=None, repr=False)
    makes: bool = False


def operation(
    functions: str,
    call: Callable[..., Any],
    signature: str,
    *,
    methods: str = "",
    guard: Callable[..., None] | None = None,
    makes: bool = False,
) -> Operation:
    """A row of the table. functions, methods: names separated by spaces, the one that people write first."""
    named, own = tuple(functions.split()), tuple(methods.split())
    name = named[0] if named else f"Tensor.{own[0]}"
    return Operation(name, call, parameters_of(signature), named, own, guard, makes)


@dataclass(frozen=True)
class Bound:
    """An operation with its arguments, each beside its parameter. Results of other nodes are still `Ref`s."""

    operation: Operation
    positional: tuple[tuple[Parameter, Any], ...]
    named: tuple[tuple[Parameter, Any], ...]
    #: No `Ref` in any argument that is checked once.
    fixed: frozenset[str] = frozenset()

    def __call__(self, value_of: Callable[[Any], Any], device: torch.device) -> Any:
        """Run it on values. Raises Problem where an argument is of another kind."""
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for parameter, argument in self.positional:
            value = self._value(parameter, argument, value_of)
            if value is not _MISSING:
                positional.append(value)
        for parameter, argument in self.named:
            value = self._value(parameter, argument, value_of)
            if value is not _MISSING:
                named[parameter.name] = value
        if self.operation.makes:
            named["device"] = device
        if self.operation.guard is not None and device.type != "meta":
            self.operation.guard(*positional, **named)
        return self.operation.call(*positional, **named)

    def _value(self, parameter: Parameter, argument: Any, value_of: Callable[[Any], Any]) -> Any:
        value = value_of(argument)
        if parameter.variadic and len(value) == 1 and isinstance(value[0], list | tuple):
            value = tuple(value[0])
        if value is None and parameter.optional:
            return _MISSING if parameter.kind in DROPPED else None
        if parameter.name not in self.fixed:
            check(parameter.kind, value, f"{self.operation.name}: {parameter.name}")
        return _MISSING if parameter.kind in DROPPED else value


def bound(operation: Operation, arguments: Sequence[Any], named: Mapping[str, Any]) -> Bound:
    """Match arguments with an operation's parameters. Raises Problem where they are too many, missing or of another kind."""
    in_order = [one for one in operation.parameters if not one.by_name]
    by_name = {one.name: one for one in operation.parameters if not one.variadic}
    positional: list[tuple[Parameter, Any]] = []
    rest = list(arguments)
    for parameter in in_order:
        if parameter.variadic:
            if rest:
                positional.append((parameter, tuple(rest)))
                rest = []
        elif rest:
            positional.append((parameter, rest.pop(0)))
    if rest:
        raise Problem(f"{operation.name} takes {len(in_order)} arguments by position, not {len(arguments)}")
    given = {parameter.name for parameter, _ in positional}
    matched: list[tuple[Parameter, Any]] = []
    for word, value in named.items():
        name = word if word in by_name else _OTHER_WORDS.get(word, word)
        by_its_name = by_name.get(name) or _listed(operation, name, value)
        if by_its_name is None:
            raise Problem(f"{operation.name} takes no {name[:64]!r} here")
        if name in given:
            raise Problem(f"{operation.name}: {name} is given twice")
        given.add(name)
        matched.append((by_its_name, value))
    missing = [one.name for one in operation.parameters if not one.optional and one.name not in given]
    if missing:
        raise Problem(f"{operation.name} misses {', '.join(missing)}")
    return Bound(operation, tuple(positional), tuple(matched), _checked(operation, positional + matched))


def _listed(operation: Operation, name: str, value: Any) -> Parameter | None:
    """A parameter that takes many arguments, given as one list by its name."""
    own = next((one for one in operation.parameters if one.variadic and one.name == name), None)
    return None if own is None else Parameter(own.name, own.kind, own.optional)


def _checked(operation: Operation, arguments: Sequence[tuple[Parameter, Any]]) -> frozenset[str]:
    """Check the arguments that are the same whenever the graph runs; their names."""
    fixed = []
    for parameter, value in arguments:
        if refers(value):
            continue
        if parameter.variadic and len(value) == 1 and isinstance(value[0], list | tuple):
            value = tuple(value[0])
        if not (value is None and parameter.optional):
            check(parameter.kind, value, f"{operation.name}: {parameter.name}")
        fixed.append(parameter.name)
    return frozenset(fixed)


def refers(value: Any) -> bool:
    """Whether anything in an argument is the result of a node."""
    if isinstance(value, Ref):
        return True
    if isinstance(value, list | tuple):
        return any(map(refers, value))
    return isinstance(value, slice) and any(map(refers, (value.start, value.stop, value.step)))


def checked_result(name: str, value: Any, most: int) -> Any:
    """What an operation returned. Raises Problem unless it is a tensor, a bounded number, a dtype or a few of them."""
    if isinstance(value, Tensor):
        if value.is_complex() or value.layout != torch.strided:
            raise Problem(f"{name} gives a tensor of {str(value.dtype).removeprefix('torch.')}, which cannot be here")
        return value
    if type(value) in (bool, float, torch.dtype) or isinstance(value, Device):
        return value
    if type(value) is int:
        if abs(value) > most:
            raise Problem(f"{name} gives a whole number beyond 2^53")
        return value
    if isinstance(value, list | tuple):
        for one in value:
            checked_result(name, one, most)
        return value if isinstance(value, tuple) else tuple(value)
    raise Problem(f"{name} gives {described(value)}, which cannot be here")
