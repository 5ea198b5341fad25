"""Reading an uploaded graph: plain data becomes nodes whose operations are in the table, or is refused.

The format is what the SDK's `create_custom_loss` sends: `{"format": 1, "nodes": [...]}`, each node with `op`, `name`, `target`,
`args` and `kwargs`. Nothing is looked up by walking attributes, and nothing runs here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from ...tinker.types import CustomLossInput
from ..refusals import Refused
from ..settings import Limits
from .kinds import DEVICE, DTYPES, LAYOUT, MOST_SIZE, Problem, Ref, described, one_line
from .signature import Bound, Operation, bound
from .table import FUNCTIONS, METHODS

MOST_INPUTS = 16
#: What holds where no limits are given.
DEFAULT_LIMITS = Limits()
#: Values in a node's arguments, and their nesting.
MOST_VALUES, MOST_DEPTH = 1024, 8
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_INPUT = re.compile(r"[a-z_][a-z0-9_]{0,63}")
_METRIC = re.compile(r"custom/[a-z0-9_./-]{1,64}:(sum|mean)")
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_LAYOUTS = ("strided", "contiguous_format", "preserve_format")
_DEVICE = re.compile(r"[a-z]{1,16}(:\d{1,3})?")


@dataclass(frozen=True)
class Node:
    """One operation with its arguments. last_uses: results that no later node reads."""

    name: str
    bound: Bound
    last_uses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """A custom loss as data, checked.

    inputs   `logprobs`, then what it reads of a datum's `loss_fn_inputs`, with their ranks
    names    the name of each input's node, in that order
    nodes    in order; each reads earlier ones only
    loss     the node that is the loss
    metrics  {"custom/<name>:sum" or ":mean": the node that is its value}
    """

    inputs: tuple[CustomLossInput, ...]
    names: tuple[str, ...] = field(repr=False)
    nodes: tuple[Node, ...] = field(repr=False)
    loss: str = field(repr=False)
    metrics: Mapping[str, str] = field(repr=False)


def read_graph(raw: Any, inputs: Any, limits: Limits = DEFAULT_LIMITS) -> Graph:
    """A graph from a request's `graph` and `inputs`. Raises Refused, 400, with what is wrong at which node."""
    try:
        declared = _inputs(inputs)
        return _Reader(declared, limits).graph(raw)
    except Problem as problem:
        raise Refused(400, f"custom loss: {one_line(problem)}") from None


def _inputs(raw: Any) -> tuple[CustomLossInput, ...]:
    if not isinstance(raw, list | tuple) or not 1 <= len(raw) <= MOST_INPUTS:
        raise Problem(f"inputs must be a list of 1 to {MOST_INPUTS} names with ranks")
    inputs = []
    for i, one in enumerate(raw):
        name, rank = (one.get("name"), one.get("rank")) if isinstance(one, Mapping) else (None, None)
        if not isinstance(name, str) or not _INPUT.fullmatch(name):
            raise Problem(f"inputs[{i}].name must be lower-case letters, digits and underscores")
        if type(rank) is not int or rank not in ((1, 2) if i == 0 else (0, 1, 2)):
            raise Problem(f"inputs[{i}].rank of {name} must be {'1 or 2' if i == 0 else '0, 1 or 2'}")
        inputs.append(CustomLossInput(name=name, rank=cast(Any, rank)))
    names = [one.name for one in inputs]
    if names[0] != "logprobs":
        raise Problem(f"the first input must be logprobs, not {names[0]}")
    if len(set(names)) < len(names):
        raise Problem("two inputs have one name")
    return tuple(inputs)


class _Reader:
    """Reads nodes in order."""

    def __init__(self, inputs: tuple[CustomLossInput, ...], limits: Limits) -> None:
        self.inputs, self.limits = inputs, limits
        self.placeholders: list[str] = []
        self.nodes: list[tuple[str, Bound, list[str]]] = []
        self.known: set[str] = set()
        self.reads: list[str] = []
        self.values = 0

    def graph(self, raw: Any) -> Graph:
        nodes = self._listed(raw)
        for i, node in enumerate(nodes[:-1]):
            try:
                self._node(node)
            except Problem as problem:
                raise Problem(f"{_place(i, node)}: {problem}") from None
        try:
            loss, metrics = self._output(nodes[-1])
        except Problem as problem:
            raise Problem(f"{_place(len(nodes) - 1, nodes[-1])}: {problem}") from None
        if len(self.placeholders) != len(self.inputs):
            names = ", ".join(one.name for one in self.inputs)
            raise Problem(f"it has {len(self.placeholders)} placeholders, and its inputs are {names}")
        kept = {loss, *metrics.values()}
        return Graph(self.inputs, tuple(self.placeholders), _with_last_uses(self.nodes, kept), loss, metrics)

    def _listed(self, raw: Any) -> Sequence[Any]:
        if not isinstance(raw, Mapping):
            raise Problem("graph must be an object with format and nodes")
        version = raw.get("format", 1)
        if type(version) is not int or version != 1:
            raise Problem("graph.format must be 1")
        nodes = raw.get("nodes")
        if not isinstance(nodes, list) or not nodes:
            raise Problem("graph.nodes must be a list of nodes")
        if len(nodes) > self.limits.graph_nodes:
            raise Problem(f"graph has {len(nodes)} nodes; the limit graph_nodes is {self.limits.graph_nodes}")
        return nodes

    def _node(self, raw: Any) -> None:
        op, name, target, args, kwargs = _fields(raw)
        if name in self.known:
            raise Problem(f"another node has the name {name}")
        if op == "placeholder":
            self._placeholder(name, target, args, kwargs)
        elif op in ("call_function", "call_method"):
            operation = _operation(op, target)
            self.reads, self.values = [], 0
            arguments = [self._value(one) for one in args]
            named = {key: self._value(one) for key, one in kwargs.items()}
            if op == "call_method" and not (arguments and isinstance(arguments[0], Ref)):
                raise Problem(f"the method {target} is of no tensor")
            self.nodes.append((name, bound(operation, arguments, named), self.reads))
        elif op == "output":
            raise Problem("the output must be the last node")
        else:
            raise Problem(f"op not allowed: {op}: a graph reads placeholders and calls functions and methods only")
        self.known.add(name)

    def _placeholder(self, name: str, target: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        place = len(self.placeholders)
        if args or kwargs:
            raise Problem("an input has no default here")
        if self.nodes:
            raise Problem("placeholders come before other nodes")
        if place >= len(self.inputs) or target != self.inputs[place].name:
            expected = self.inputs[place].name if place < len(self.inputs) else "no other"
            raise Problem(f"placeholder {target[:64]!r} is not in the inputs at this place, which have {expected}")
        self.placeholders.append(name)

    def _output(self, raw: Any) -> tuple[str, dict[str, str]]:
        op, _, target, args, kwargs = _fields(raw)
        if op != "output" or target != "output" or len(args) != 1 or kwargs:
            raise Problem("the last node must be the output, with one argument")
        self.reads, self.values = [], 0
        returned = args[0].get("tuple") if isinstance(args[0], Mapping) and len(args[0]) == 1 else args[0]
        if not isinstance(returned, list) or len(returned) != 2:
            raise Problem("it must return (loss, metrics)")
        loss, metrics = returned[0], returned[1]
        entries = metrics.get("dict") if isinstance(metrics, Mapping) and len(metrics) == 1 else None
        if not isinstance(entries, Mapping):
            raise Problem("its metrics must be a dict")
        values = {}
        for name, value in entries.items():
            if not isinstance(name, str) or not _METRIC.fullmatch(name):
                raise Problem(f"metric {str(name)[:80]!r} must be called custom/<name>:sum or custom/<name>:mean")
            values[name] = self._reference(value, f"metric {name}")
        return self._reference(loss, "the loss"), values

    def _reference(self, raw: Any, what: str) -> str:
        value = self._value(raw)
        if not isinstance(value, Ref):
            raise Problem(f"{what} must be the result of a node")
        return value.name

    def _value(self, raw: Any, depth: int = 0) -> Any:
        """An argument as it will be handed on; results of nodes are `Ref`s."""
        self.values += 1
        if depth > MOST_DEPTH:
            raise Problem(f"its arguments are nested deeper than {MOST_DEPTH}")
        if self.values > MOST_VALUES:
            raise Problem(f"its arguments have more than {MOST_VALUES} values")
        if raw is None or type(raw) is bool:
            return raw
        if type(raw) is int:
            if abs(raw) > MOST_SIZE:
                raise Problem("a whole number is beyond 2^31")
            return raw
        if type(raw) is float:
            if not math.isfinite(raw):
                raise Problem('a number that is not finite is written {"float": "inf"}')
            return raw
        if type(raw) is str:
            if len(raw) > 128:
                raise Problem(f"a string of {len(raw)} characters")
            return raw
        if isinstance(raw, list):
            return [self._value(one, depth + 1) for one in raw]
        if isinstance(raw, Mapping) and len(raw) == 1:
            ((tag, content),) = raw.items()
            return self._tagged(tag, content, depth)
        raise Problem("an argument is neither a number, a string, a list nor an object with one key")

    def _tagged(self, tag: Any, content: Any, depth: int) -> Any:
        if tag == "ref":
            if not isinstance(content, str) or content not in self.known:
                raise Problem(f"it reads {str(content)[:64]!r}, which is no earlier node")
            self.reads.append(content)
            return Ref(content)
        if tag == "tuple" and isinstance(content, list):
            return tuple(self._value(one, depth + 1) for one in content)
        if tag == "slice" and isinstance(content, list) and len(content) == 3:
            return self._slice([self._value(one, depth + 1) for one in content])
        if tag == "ellipsis" and content is True:
            return Ellipsis
        if isinstance(content, str):
            if tag == "float" and content in _FLOATS:
                return _FLOATS[content]
            if tag == "dtype" and content in DTYPES:
                return DTYPES[content]
            if tag == "device" and _DEVICE.fullmatch(content):
                return DEVICE
            if tag in ("layout", "memory_format") and content in _LAYOUTS:
                return LAYOUT
        raise Problem(f"it has no argument of this form: {str(tag)[:32]}")

    @staticmethod
    def _slice(parts: list[Any]) -> slice:
        for part in parts:
            if not (part is None or type(part) is int or isinstance(part, Ref)):
                raise Problem(f"a slice is of whole numbers, not of {described(part)}")
        if type(parts[2]) is int and parts[2] < 1:
            raise Problem(f"a slice's step must be 1 or more, not {parts[2]}")
        return slice(*parts)


def _fields(raw: Any) -> tuple[str, str, str, list[Any], Mapping[str, Any]]:
    if not isinstance(raw, Mapping):
        raise Problem("a node must be an object")
    op, name, target = (raw.get(key) for key in ("op", "name", "target"))
    args, kwargs = raw.get("args", []), raw.get("kwargs", {})
    if not (isinstance(op, str) and isinstance(name, str) and isinstance(target, str)):
        raise Problem("op, name and target must be strings")
    if not _NAME.fullmatch(name):
        raise Problem("its name must be letters, digits and underscores")
    if not isinstance(args, list) or not isinstance(kwargs, Mapping):
        raise Problem("args must be a list and kwargs an object")
    return op[:32], name, target, args, kwargs


def _operation(op: Literal["call_function", "call_method"] | str, target: str) -> Operation:
    known = (FUNCTIONS if op == "call_function" else METHODS).get(target)
    if known is None:
        raise Problem(f"op not allowed: {'' if op == 'call_function' else 'Tensor.'}{target[:80]}")
    return known


def _place(index: int, raw: Any) -> str:
    name = raw.get("name") if isinstance(raw, Mapping) else None
    return f"node {index} ({name})" if isinstance(name, str) and _NAME.fullmatch(name) else f"node {index}"


def _with_last_uses(nodes: Sequence[tuple[str, Bound, list[str]]], kept: set[str]) -> tuple[Node, ...]:
    """Nodes with the results that can be let go after each: nobody reads them later."""
    seen = set(kept)
    made = []
    for name, call, reads in reversed(nodes):
        made.append(Node(name, call, tuple(one for one in {*reads, name} if one not in seen)))
        seen.update(reads, (name,))
    return tuple(reversed(made))
