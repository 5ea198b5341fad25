"""Running a graph on one datum's tensors: first on tensors without values, which shows what it would take, then in earnest."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..refusals import Failed, Refused
from ..settings import Limits
from .kinds import MOST_WHOLE, Problem, Ref, described, one_line
from .read import DEFAULT_LIMITS, Graph
from .signature import checked_result

#: Multiplications of a product of matrices that count as one number made.
WORK = 500
_PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm, torch.ops.aten.baddbmm}
#: Sizes of dry runs, [T, K]. The second is for losses that need longer data, such as the 8 likeliest of 3.
DRY_SIZES = ((5, 3), (523, 131))

Values = tuple[Tensor, dict[str, Tensor]]


def run_graph(graph: Graph, logprobs: Tensor, inputs: Sequence[Tensor], limits: Limits = DEFAULT_LIMITS) -> Values:
    """(0-d loss, its metrics) of one datum. Raises Failed, of the user, with the node and what was wrong.

    logprobs: [T] or [T, K], in nats. inputs: the graph's other inputs, in its order, each of its rank.
    """
    try:
        check_size(graph, [logprobs, *inputs], limits)
        return evaluate(graph, [logprobs, *inputs], time.monotonic() + limits.graph_seconds)
    except Problem as problem:
        raise Failed(f"custom loss: {one_line(problem)}", "user") from None


def dry_run(graph: Graph, limits: Limits = DEFAULT_LIMITS) -> None:
    """Run it on a few made-up numbers. Raises Refused, 400, unless it gives a 0-d loss that has a gradient.

    What a request does not say is tried out: which inputs are whole numbers (all floats first), and how long data must be.
    """
    first: Problem | None = None
    for tokens, columns in DRY_SIZES:
        for whole in _whole_inputs(graph):
            tensors = _made_up(graph, tokens, columns, whole)
            try:
                check_size(graph, tensors, limits)
                loss, _ = evaluate(graph, tensors, time.monotonic() + limits.graph_seconds)
                gradient_of(loss, tensors[0])
                return
            except Problem as problem:
                first = first or problem
    raise Refused(400, f"custom loss: {one_line(first)}")


def _whole_inputs(graph: Graph) -> Iterator[frozenset[str]]:
    """Sets of inputs to take for whole numbers, likely ones first."""
    names = [one.name for one in graph.inputs[1:]]
    likely = frozenset(name for name in names if name == "target_tokens")
    tries = [likely, frozenset(names)]
    tries += [likely | {name} for name in names]
    tries += [frozenset(names) - {name} for name in names]
    yield from dict.fromkeys(tries)


def _made_up(graph: Graph, tokens: int, columns: int, whole: frozenset[str]) -> list[Tensor]:
    """Negative logprobs, and inputs between 0.2 and 0.9, or zeros and ones where they are whole numbers."""
    tensors = []
    for i, one in enumerate(graph.inputs):
        shape = (tokens, columns)[: one.rank]
        count = math.prod(shape)
        if one.name in whole:
            tensors.append((torch.arange(count) % 2).reshape(shape))
        else:
            ramp = 0.2 + 0.7 * torch.arange(count, dtype=torch.float32).add(i).mul(0.618).frac()
            tensors.append((ramp.log() if i == 0 else ramp).reshape(shape))
    tensors[0].requires_grad_()
    return tensors


class _Counting(TorchDispatchMode):
    """Counts the numbers that operations make on tensors without values, and stops at a limit."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.count = most, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        taken, made = list(_tensors((args, kwargs))), list(_tensors(result))
        storages = {one.untyped_storage()._cdata for one in taken}
        largest = max((one.numel() for one in taken), default=0)
        new = [one.numel() for one in made if one.untyped_storage()._cdata not in storages]
        self.count += sum(new) + sum(
            one.numel() for one in made if one.untyped_storage()._cdata in storages and one.numel() > largest
        )
        if new:
            self.count += max(0, _broadcast(taken) - max(largest, *new))
        if func.overloadpacket in _PRODUCTS and made:
            self.count += made[0].numel() * taken[-1].shape[-2] // WORK
        if self.count > self.most:
            raise Problem(f"it makes more than {self.most} numbers for one datum, the limit graph_elements")
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))


def _broadcast(tensors: Sequence[Tensor]) -> int:
    """Numbers of the shape that tensors broadcast to; 0 where they do not."""
    try:
        return math.prod(torch.broadcast_shapes(*(one.shape for one in tensors)))
    except RuntimeError:
        return 0


def check_size(graph: Graph, tensors: Sequence[Tensor], limits: Limits) -> None:
    """Raise Problem where the graph would make too many numbers of tensors of these shapes, or does not fit them.

    Nothing is allocated: it runs on torch's meta device, which knows shapes only.
    """
    empty = [torch.empty(one.shape, dtype=one.dtype, device="meta") for one in tensors]
    with torch.no_grad(), _Counting(limits.graph_elements):
        _evaluated(graph, empty, time.monotonic() + limits.graph_seconds)


def evaluate(graph: Graph, tensors: Sequence[Tensor], deadline: float) -> Values:
    """(0-d loss, metrics). Raises Problem unless the loss is one number with a gradient.

    deadline: of time.monotonic(); past it no further node runs.
    """
    loss, metrics = _evaluated(graph, tensors, deadline)
    if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
        raise Problem(f"the loss must be a scalar tensor, not {described(loss)}: end with .sum()")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise Problem("the loss has no gradient: nothing in it goes back to logprobs")
    scalars: dict[str, Tensor] = {}
    for name, value in metrics.items():
        if isinstance(value, Tensor) and value.numel() == 1:
            scalars[name] = value.detach().reshape(())
        elif type(value) in (int, float, bool):
            scalars[name] = torch.tensor(float(value), device=loss.device)
        else:
            raise Problem(f"metric {name} must be a scalar tensor, not {described(value)}")
    return loss, scalars


def gradient_of(loss: Tensor, logprobs: Tensor) -> Tensor:
    """d loss / d logprobs. Raises Problem where an operation on the way has no derivative."""
    try:
        return torch.autograd.grad(loss, logprobs)[0]
    except RuntimeError as error:
        raise Problem(f"the loss has no gradient: {_first_line(error)}") from None


def _evaluated(graph: Graph, tensors: Sequence[Tensor], deadline: float) -> tuple[Any, dict[str, Any]]:
    values: dict[str, Any] = dict(zip(graph.names, tensors, strict=True))
    device = tensors[0].device

    def value_of(argument: Any) -> Any:
        kind = type(argument)
        if kind is Ref:
            return values[argument.name]
        if kind is list or kind is tuple:
            return kind(value_of(one) for one in argument)
        if kind is slice:
            return slice(value_of(argument.start), value_of(argument.stop), value_of(argument.step))
        return argument

    for node in graph.nodes:
        if time.monotonic() > deadline:
            raise Problem("it takes longer than the limit graph_seconds")
        name = node.bound.operation.name
        try:
            values[node.name] = checked_result(name, node.bound(value_of, device), MOST_WHOLE)
        except Problem as problem:
            raise Problem(f"node {node.name}: {problem}") from None
        except Exception as error:
            raise Problem(f"node {node.name}: {name}: {_first_line(error)}") from None
        for unread in node.last_uses:
            values.pop(unread, None)
    return values.get(graph.loss), {name: values.get(node) for name, node in graph.metrics.items()}


def _first_line(error: Exception) -> str:
    """An error's own words, on one line, without addresses and files."""
    words = str(error).strip().splitlines()
    return words[0][:200] if words else type(error).__name__
