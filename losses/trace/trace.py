"""A loss as a graph of one datum, for services that run a custom loss on their side, such as tinker's `create_custom_loss`.

    traced = get_loss("grpo", reduction="sum", kl_coefficient=0.0).trace()
    handle = service_client.create_custom_loss(traced.function, traced.ranks)
    training_client.forward_backward_custom(data, handle)

The service calls the function for each datum by itself and adds the losses up. So only losses per token or per datum that
read logprobs can go there, and only their reduction "sum" is the same loss. Each datum must carry every input under the
function's own names: the sampler's logprobs as `sampling_logprobs`, for `logprobs` is the model's there.
"""

from __future__ import annotations

import linecache
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch.fx
from torch import Tensor

from ...datums.errors import TraceError, did_you_mean
from ..spec.settings import WEIGHTS_KEY, Settings
from ..spec.spec import Input, LossSpec
from .recorder import ExampleTracer, check_graph, explained, location
from .single_datum import SingleDatum, example_of

MAX_INPUTS = 16


@dataclass(frozen=True)
class TracedLoss:
    """What `Loss.trace()` gives: a plain function of one datum's tensors, made of torch operations only.

    function: (logprobs, *inputs, weights) -> (0-d loss, {"custom/<metric>:mean" or ":sum": 0-d}). A loss over positions of
        weight 0 is 0 whatever they hold. Call it, `print` it, or hand it to the service with `ranks`.
    ranks: {parameter: 0 for one number, 1 for [T], 2 for [T, K]}, in the function's order.
    graph: the same as torch.fx has it.
    dropped: {metric: why the service cannot have it}. A `:mean` is the service's: over datums, each datum's own mean
        counting once (0 where a datum has no position of any weight), while lossbook's is over all tokens.
    """

    name: str
    function: Callable[..., tuple[Tensor, dict[str, Tensor]]]
    ranks: dict[str, int]
    graph: torch.fx.Graph = field(repr=False, compare=False)
    source: str = field(repr=False)
    dropped: dict[str, str]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The `loss_fn_inputs` keys it reads; every datum must carry them all."""
        return tuple(self.ranks)[1:]

    def scaled(self, key: str) -> TracedLoss:
        """The same times a number that each datum carries under `key`, its last input: a share of a mean over a whole call."""
        graph, copies = torch.fx.Graph(), {}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                copies[node] = graph.node_copy(node)
        factor = graph.placeholder(key)
        for node in self.graph.nodes:
            if node.op == "output":
                value, metrics = torch.fx.map_arg(node.args[0], copies.__getitem__)
                graph.output((graph.call_function(operator.mul, (value, factor)), metrics))
            elif node.op != "placeholder":
                copies[node] = graph.node_copy(node, copies.__getitem__)
        function, source = _as_function(graph, re.sub(r"\W", "_", self.name))
        return replace(self, function=function, ranks={**self.ranks, key: 0}, graph=graph, source=source)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.function(*tensors)

    def __str__(self) -> str:
        return self.source


def trace(
    spec: LossSpec,
    settings: Settings,
    optional: Sequence[str] = (),
    ranks: Mapping[str, int] | None = None,
) -> TracedLoss:
    """The loss of one datum as a graph. Raises TraceError with the reason and the line of the loss's function.

    optional: inputs with a default that it should read too. ranks: where a tensor is not [T] (or, with candidates, not
    [T, K]): {"logprobs": 2, "weights": 2} for K targets per position.
    """
    _refuse_untraceable(spec, settings)
    key = settings.weights or WEIGHTS_KEY
    inputs = _inputs_of(spec, settings.function, optional)
    shapes = _ranks_of(spec, inputs, ranks or {}, key)
    tracer = ExampleTracer()
    given = {name: tracer.placeholder(name, example_of(rank, is_weight=name == key)) for name, rank in shapes.items()}
    datum = SingleDatum(spec, given, key)
    try:
        returned = spec.function(*datum.arguments(), **settings.function)
        value, metrics, dropped = datum.finished(returned)
        graph = tracer.finished((value, metrics))
    except TraceError as error:
        raise TraceError(f"{spec.name} cannot be traced{location(error)}: {error}") from None
    except Exception as error:
        raise TraceError(f"{spec.name} cannot be traced{location(error)}: {explained(error)}") from error
    check_graph(graph, spec.name)
    function, source = _as_function(graph, re.sub(r"\W", "_", spec.name))
    return TracedLoss(spec.name, function, shapes, graph, source, dropped)


#: What a loss of that level looks at.
TOGETHER = {"pair": "pairs of datums", "group": "groups of datums", "batch": "all datums of a batch together"}


def _refuse_untraceable(spec: LossSpec, settings: Settings) -> None:
    reduction, alone = settings.reduction, "and the service calls the function with one datum at a time"
    why = ""
    if spec.is_batch_style:
        why = f"it is written as fn(data, logprobs_list), {alone}; pass it to forward_backward_custom as it is"
    elif other := [name for name in spec.outputs if name != "logprobs"]:
        why = f"it reads the model's {' and '.join(other)}, and the service hands out logprobs only"
        why += "; take a topk_ loss over a teacher's candidates" if spec.reads_vocabulary else ""
    elif spec.per in TOGETHER or spec.couples in TOGETHER:
        what = next(what for level, what in TOGETHER.items() if level in (spec.per, spec.couples))
        why = f"it looks at {what}, {alone}; pass it to forward_backward_custom as it is"
    elif settings.weights is not None and not settings.weights.isidentifier():
        why = f"its weights are {settings.weights!r}, and each input of the traced function is a parameter of that name"
    elif reduction != "sum":
        why = (
            f"the service adds the losses of datums up, so reduction {reduction!r} would be another loss there. Use "
            f"get_loss({spec.name!r}, reduction='sum').trace() and divide at optim_step, or divide each datum's weights "
            "by the denominator"
        )
    if why:
        raise TraceError(f"{spec.name} cannot be traced: {why}")


def _inputs_of(spec: LossSpec, settings: Mapping[str, Any], optional: Sequence[str]) -> list[Input]:
    """The inputs that the trace reads: required ones, those that a setting requires, and those asked for."""
    known = [one.name for one in spec.inputs if not one.required]
    for name in optional:
        if name not in known:
            raise TraceError(f"{spec.name} has no optional input {name!r}.{did_you_mean(name, known)} It has: {known}")
    asked = {*optional, *(key for key, setting in spec.required_if.items() if settings.get(setting))}
    return [one for one in spec.inputs if one.required or one.name in asked]


def _ranks_of(spec: LossSpec, inputs: Sequence[Input], given: Mapping[str, int], weights: str) -> dict[str, int]:
    """{parameter of the traced function: rank}, logprobs first and weights, by their key, last."""
    wide = 2 if spec.candidates else 1
    ranks = {"logprobs": wide}
    for one in inputs:
        ranks[one.name] = 0 if one.per == "datum" else wide if one.kind in ("logprob", "prob") else 1
    if spec.candidates is not None:
        ranks[spec.candidates] = 2
    ranks.setdefault(weights, 1)
    for name, rank in given.items():
        if name not in ranks:
            raise TraceError(f"{spec.name} reads no {name!r}.{did_you_mean(name, ranks)} It reads: {', '.join(ranks)}")
        ranks[name] = rank
    if len(ranks) > MAX_INPUTS:
        raise TraceError(f"{spec.name} reads {len(ranks)} tensors, and the service takes at most {MAX_INPUTS}")
    return ranks


def _as_function(graph: torch.fx.Graph, name: str) -> tuple[Callable[..., Any], str]:
    """The graph as a plain function, and its source (made here from the graph, never read from a file)."""
    code = graph.python_code("self")
    source = re.sub(r";  (?:\w+ = )+None(?=\s)", "", code.src).strip() + "\n"
    source = source.replace("def forward(self, ", f"def {name}(", 1)
    filename = f"<traced {name} {id(graph)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace = dict(code.globals)
    exec(compile(source, filename, "exec"), namespace)
    return namespace[name], source
