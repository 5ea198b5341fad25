"""Recording a function as a torch.fx graph, with an example beside each node and the line of code that made it."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch.fx.node import map_arg

from ...datums.errors import TraceError

#: A graph may call functions of these packages; HOST_METHODS leave the tensor's device, so it may not call them.
PACKAGES = ("torch", "math", "operator", "_operator")
HOST_METHODS = ("item", "tolist", "numpy", "backward")
SELECTS = "picks elements by a condition, so its shape depends on data"
_LOSSES = Path(__file__).parents[1]
#: lossbook's own folders: a line in their files is never the loss's. Families and variants hold the formulas.
_MACHINERY = {str(_LOSSES), *(str(_LOSSES / room) for room in ("batch", "loss", "math", "spec", "trace"))}
_TORCH = str(Path(torch.__file__).parent)
#: Words of torch.fx's or Python's errors, and what to write instead.
_ADVICE = (
    ("cannot be iterated", "a tensor cannot be looped over. Write it as one tensor operation"),
    ("control flow", "a tensor's value decides what Python does next. Write torch.where(condition, one, other)"),
    ("'len' is not supported", "len() of a tensor is a number that depends on data. Use tensor.shape[0] or seqs"),
    ("item assignment", "a tensor is changed in place. Write torch.where or masked_fill"),
    ("real number", "a tensor is made a Python number. Keep it a tensor: torch.exp, not math.exp or float"),
    ("interpreted as an integer", "a tensor is made a Python number. Keep it a tensor, also as a size"),
)


class Traced(torch.fx.Proxy):
    """A tensor that is being recorded. Its rank is known, because it is declared; its sizes and values are not."""

    @property
    def ndim(self) -> int:
        """Its rank."""
        return len(shape_of(self))

    def dim(self) -> int:
        """Its rank."""
        return self.ndim

    def __len__(self) -> int:
        raise TypeError("'len' is not supported")


class ExampleTracer(torch.fx.Tracer):
    """Records the operations on placeholders. A node's meta holds `example`, its value for harmless inputs, and `line`."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = torch.fx.Graph()
        self.root = torch.nn.Module()
        self.tensor_attrs = {}

    def placeholder(self, name: str, example: Tensor) -> Any:
        """A new input of the graph."""
        proxy = self.create_proxy("placeholder", name, (), {})
        proxy.node.meta["example"] = example
        return proxy

    def finished(self, returned: Any) -> torch.fx.Graph:
        """The graph that returns this, without unused operations."""
        self.create_node("output", "output", (self.create_arg(returned),), {})
        self.graph.lint()
        self.graph.eliminate_dead_code()
        return self.graph

    def proxy(self, node: torch.fx.Node) -> Traced:
        """The traced tensor of a node."""
        return Traced(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        """A node, its example and its line."""
        made = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        node = made.node
        node.meta["line"] = _current_line()
        if kind in ("call_function", "call_method"):
            values = map_arg(node.args, lambda one: one.meta["example"])
            named = map_arg(node.kwargs, lambda one: one.meta["example"])
            with torch.no_grad():
                node.meta["example"] = (
                    getattr(values[0], target)(*values[1:], **named)
                    if kind == "call_method"
                    else target(*values, **named)
                )
        return made

    def create_arg(self, a: Any) -> Any:
        """As torch.fx does, but a constant 0-d tensor is made by an operation, since a graph alone holds no tensors."""
        if isinstance(a, torch.fx.Proxy):
            return a.node
        if isinstance(a, Tensor):
            if a.requires_grad:
                raise TraceError(
                    "it holds a parameter, which a graph would keep at its present value: pass it as an input, or detach it"
                )
            if a.ndim:
                raise TraceError(
                    f"it uses a tensor of shape {list(a.shape)} that is neither an input nor made from one. Make it from "
                    "an input (torch.zeros_like, new_zeros) or pass it as an input"
                )
            like = next(iter(self.graph.nodes))  # not torch.full, which a second tracing would run and keep as a tensor
            made = self.create_proxy("call_method", "new_full", (self.proxy(like), (), a.tolist()), {"dtype": a.dtype})
            return made.node
        return super().create_arg(a)


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of a tensor; of a traced one, its shape for the example."""
    example = value.node.meta["example"] if isinstance(value, torch.fx.Proxy) else value
    if not isinstance(example, Tensor):
        raise TraceError(f"it returns a {type(example).__name__} where a tensor belongs")
    return tuple(example.shape)


def is_selected(value: Any) -> bool:
    """Whether anything that led to a traced tensor picked elements by a condition."""
    waiting, seen = [value.node], set()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += node.all_input_nodes
    return any(_selects(node) for node in seen)


def check_graph(graph: torch.fx.Graph, name: str) -> None:
    """Raise TraceError for the first operation that a service would refuse, with its line."""
    for node in graph.nodes:
        target: Any = node.target
        what = ""
        if node.op == "call_function" and target is not getattr:
            package = (getattr(target, "__module__", None) or "").split(".")[0]
            if package not in PACKAGES:
                what = (
                    f"calls {getattr(target, '__qualname__', target)} of {package or 'an unknown package'}; torch only"
                )
        elif node.op == "call_method" and target in HOST_METHODS:
            what = f"calls .{target}(), which leaves torch; keep every value a tensor"
        elif node.op == "call_method" and target.endswith("_") and not target.startswith("__"):
            what = f"changes a tensor in place with .{target}(); make a new one"
        elif node.op == "call_method" and not hasattr(Tensor, target):
            what = f"calls .{target}(), which tensors do not have"
        if not what and _selects(node):
            what = f"{SELECTS}; use torch.where, and count them"
        if what:
            raise TraceError(f"{name} cannot be traced{node.meta.get('line', '')}: it {what}")


def _selects(node: torch.fx.Node) -> bool:
    """Whether a node's shape depends on the values it is given."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name == "getitem":
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        examples = [one.meta["example"] for one in index if isinstance(one, torch.fx.Node)]
        return any(isinstance(one, Tensor) and one.dtype == torch.bool for one in examples)
    return name in ("nonzero", "masked_select", "unique", "argwhere")


def location(error: Exception) -> str:
    """` at file:line, in function: code`, the deepest line that is neither torch's nor lossbook's machinery."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_users(f.filename)]
    if not frames:
        return ""
    frame = frames[-1]
    return f" at {frame.filename}:{frame.lineno}, in {frame.name}, `{(frame.line or '').strip()}`"


def explained(error: Exception) -> str:
    """What to write instead, or else the error itself."""
    said = str(error)
    advice = next((advice for words, advice in _ADVICE if words in said), None)
    return advice or f"{type(error).__name__}: {said}"


def _current_line() -> str:
    frame = sys._getframe(1)
    while frame is not None and not _is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return "" if frame is None else f" at {frame.f_code.co_filename}:{frame.f_lineno}, in {frame.f_code.co_name}"


def _is_users(filename: str) -> bool:
    return str(Path(filename).parent) not in _MACHINERY and not filename.startswith((_TORCH, "<"))
