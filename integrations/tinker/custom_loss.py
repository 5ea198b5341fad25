"""Custom losses by handle: `create_custom_loss` traces a function of one datum, `forward_backward_custom` runs the trace.

The hosted service runs the trace on its side, so it takes only what torch.fx can write down. Here it runs in this process, under
the same rules: a loss that passes here is one that can be handed to the service.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, Literal

import torch
import torch.fx
from torch import Tensor

from ...datums.errors import LossContractError, MissingInput, ShapeError, TraceError, located
from ...losses.trace.recorder import HOST_METHODS, PACKAGES
from .types import CustomLossInput, Datum

__all__ = ["LossHandle", "PerDatumLossFn"]

#: (logprobs, *inputs) -> (scalar loss, {"custom/<name>:sum" or ":mean": scalar tensor}), of one datum.
PerDatumLossFn = Callable[Concatenate[Tensor, ...], tuple[Tensor, Mapping[str, Tensor]]]
#: 0: a number, 1: [T], 2: [T, K].
Rank = Literal[0, 1, 2]

_METRIC = re.compile(r"custom/[a-z0-9_./-]{1,64}:(sum|mean)")
_INPUT = re.compile(r"[a-z_][a-z0-9_]{0,63}")
_MOST_INPUTS = 16


@dataclass(frozen=True)
class PerDatumLoss:
    """A loss of one datum at a time that says what it reads: what `forward_backward_custom` takes beside functions.

    Called with all datums and their logprobs it gives the sum of their losses, and metrics.

    inputs      `logprobs`, then the `loss_fn_inputs` keys that it reads, each with its rank
    session_id  the session whose clients may use it
    """

    name: str
    inputs: tuple[CustomLossInput, ...]
    session_id: str

    @property
    def input_names(self) -> tuple[str, ...]:
        """The `loss_fn_inputs` keys that it reads, in its order."""
        return tuple(one.name for one in self.inputs[1:])

    def check(self, data: Sequence[Datum], session_id: str) -> None:
        """Raise unless it is of this session, and every datum has each input, at its rank; logprobs have that of `target_tokens`.

        Raises LossContractError, MissingInput or ShapeError.
        """
        if session_id != self.session_id:
            raise LossContractError(
                f"custom loss {self.name!r} was made by a service client of session {self.session_id}, and this client is of "
                f"{session_id}: make it again"
            )
        for i, datum in enumerate(data):
            for one in self.inputs:
                key = "target_tokens" if one.name == "logprobs" else one.name
                if key not in datum.loss_fn_inputs:
                    carried = ", ".join(sorted(datum.loss_fn_inputs))
                    raise MissingInput(
                        f"custom loss {self.name!r} reads {key!r}, which datum {i} of {len(data)} does not carry. It carries: {carried}"
                    )
                rank = len(datum.loss_fn_inputs[key].to_numpy().shape)
                if rank != one.rank:
                    raise ShapeError(
                        f"custom loss {self.name!r} declared {one.name} with rank {one.rank}, but {key!r} of datum {i} of "
                        f"{len(data)} has rank {rank}"
                    )

    def __call__(self, data: Sequence[Datum], logprobs: Sequence[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The sum of the datums' losses, and metrics."""
        raise NotImplementedError


@dataclass(frozen=True)
class LossHandle(PerDatumLoss):
    """A traced loss, for `forward_backward_custom` of the clients of its session.

    inputs    `logprobs`, then the `loss_fn_inputs` keys that it reads, each with its rank
    graph     what runs, in place of the function
    loss_id   the hosted service's id of it; None here, where it runs in this process
    """

    graph: torch.fx.GraphModule = field(repr=False, compare=False)
    loss_id: str | None = None

    @property
    def key(self) -> str:
        """Equal for equal traces with equal inputs."""
        return hashlib.sha256(f"{self.graph.code}{self.inputs!r}".encode()).hexdigest()

    def __call__(self, data: Sequence[Datum], logprobs: Sequence[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The sum of the datums' losses, and each metric's sum, or mean over datums, as its name's end says."""
        losses: list[Tensor] = []
        sums: dict[str, float] = {}
        for i, (datum, own) in enumerate(zip(data, logprobs, strict=True)):
            loss, metrics = self.graph(own, *(datum.loss_fn_inputs[name].to_torch() for name in self.input_names))
            if loss.ndim:
                raise LossContractError(
                    f"custom loss {self.name!r} must return a scalar, not a tensor of shape {list(loss.shape)}, as for datum {i}"
                )
            losses.append(loss)
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
        means = {name: value / len(data) if name.endswith(":mean") else value for name, value in sums.items()}
        return torch.stack(losses).sum(), means


def traced_loss(function: PerDatumLossFn, input_ranks: Mapping[str, Rank], session_id: str) -> LossHandle:
    """A handle of a function. Raises TraceError that says what the hosted service would not take."""
    name = getattr(function, "__name__", type(function).__name__)
    try:
        inputs = _inputs(function, input_ranks)
        try:
            graph = torch.fx.symbolic_trace(function)
        except Exception as error:
            raise TraceError(
                f"torch.fx cannot write it down: {error}. Tensors' values cannot decide what Python does (use torch.where), "
                "and only torch and math can be called"
            ) from error
        for node in graph.graph.nodes:
            _check_node(node)
    except TraceError as error:
        raise located(error, f"create_custom_loss({name})") from error.__cause__
    return LossHandle(name, inputs, session_id, graph)


def _inputs(function: Callable[..., Any], ranks: Mapping[str, Rank]) -> tuple[CustomLossInput, ...]:
    parameters = list(inspect.signature(function).parameters.values())
    names = [parameter.name for parameter in parameters]
    if names[:1] != ["logprobs"]:
        raise TraceError(
            "its first parameter must be logprobs, the others loss_fn_inputs keys: def loss(logprobs, advantages)"
        )
    if len(names) > _MOST_INPUTS:
        raise TraceError(f"it has {len(names)} parameters; {_MOST_INPUTS} are the most, logprobs included")
    for parameter in parameters:
        if not _INPUT.fullmatch(parameter.name):
            raise TraceError(
                f"parameter {parameter.name!r} must be a name of lower-case letters, digits and underscores"
            )
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise TraceError(
                f"parameter {parameter.name!r} must be positional: no *args, **kwargs or keyword-only ones"
            )
        if parameter.default is not parameter.empty:
            raise TraceError(
                f"parameter {parameter.name!r} has a default, but every input must be carried by every datum"
            )
    if set(ranks) != set(names):
        raise TraceError(f"input_ranks must give a rank for {', '.join(names)}, and gives: {', '.join(sorted(ranks))}")
    for name, rank in ranks.items():
        if rank not in ((1, 2) if name == "logprobs" else (0, 1, 2)):
            raise TraceError(
                f"the rank of {name} is {rank!r}; 1 is [T], 2 is [T, K], and 0 a number, which logprobs are not"
            )
    return tuple(CustomLossInput(name=name, rank=ranks[name]) for name in names)


def _check_node(node: torch.fx.Node) -> None:
    target: Any = node.target
    if node.op == "call_function" and target is not getattr:
        package = (getattr(target, "__module__", None) or "").split(".")[0]
        if package not in PACKAGES:
            raise TraceError(
                f"it calls {getattr(target, '__qualname__', target)} of {package or 'no package'}; torch and math only"
            )
    elif node.op == "call_method" and target in HOST_METHODS:
        raise TraceError(f"it calls .{target}(), which leaves torch: keep every value a tensor, metrics too")
    elif node.op == "call_method" and not hasattr(Tensor, target):
        raise TraceError(f"it calls .{target}(), which tensors do not have")
    elif node.op == "call_module":
        raise TraceError(f"it calls the module {target!r}: use functions, such as those of torch.nn.functional")
    elif node.op == "get_attr":
        raise TraceError(f"it reads a tensor of its surroundings ({target!r}): pass it as an input of the datum")
    elif node.op == "output":
        _check_output(node.args[0])


def _check_output(returned: Any) -> None:
    if not isinstance(returned, tuple | list) or len(returned) != 2 or not isinstance(returned[1], dict):
        raise TraceError("it must return (loss, metrics): a scalar tensor and a dict")
    loss, metrics = returned
    if not isinstance(loss, torch.fx.Node):
        raise TraceError(f"its loss must be a tensor made from logprobs, not {loss!r}")
    for name, value in metrics.items():
        if not isinstance(name, str) or not _METRIC.fullmatch(name):
            raise TraceError(f"metric {name!r} must be called custom/<name>:sum or custom/<name>:mean, in lower case")
        if not isinstance(value, torch.fx.Node):
            raise TraceError(f"metric {name!r} must be a tensor, not {value!r}")
