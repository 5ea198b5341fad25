"""Losses of lossbook on any service of Tinker's protocol, through a client of its SDK: `lossbook.remote`.

    client = lossbook.remote.RemoteClient(training, service)
    output = client.forward_backward(data, "dapo", {"clip_high": 1.28}).result()

A loss goes by its id where the server is lossbook's, else as a graph that the service runs, else as a function that the SDK
calls between a forward and a backward. Whichever way, it is the same loss: what it is divided by is worked out here, from the
data of the whole call, and its value and metrics are computed here from the logprobs that come back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..datums.errors import ConfigError, LossbookError, LossContractError, TraceError
from ..datums.types import Datum, as_datums
from ..losses.loss.loss import AnyLoss, Loss, LossLike
from ..losses.registry import get_loss
from ..losses.variants.presets import list_presets
from .per_datum import config_of, scales, tensors_of, traced
from .refusal import is_refusal

__all__ = ["RemoteClient", "RemoteFuture", "RemoteOutput", "Way"]

#: By its id; as a graph that the service runs; as a function that the SDK calls.
Way = Literal["id", "traced", "function"]
_WAYS: tuple[Way, ...] = ("id", "traced", "function")
#: Ids that mean Tinker's own loss in its protocol.
_TINKERS = frozenset(name.removeprefix("tinker:") for name in list_presets() if name.startswith("tinker:"))
_TINKERS |= {"cross_entropy", "stable_reinforce", "custom"}
#: What surely travels in one request: the SDK cuts at 1,024 datums and 5 MB unless a server says less.
_DATUMS, _NUMBERS = 128, 200_000
#: The input by which each datum's traced loss is multiplied.
_SCALE = "lossbook_scale"
#: How many datums a loss of that level needs for a first look.
_FEW = {"token": 1, "datum": 1, "pair": 2}


@dataclass(frozen=True)
class RemoteOutput:
    """What a call gave.

    loss_fn_outputs   of each datum, as the service returned them; `logprobs` in nats
    metrics           the loss's own, as `loss(data, logprobs)` has them, and `loss:sum`, the loss itself
    way               how it went
    """

    loss_fn_outputs: list[Any]
    metrics: dict[str, float]
    way: Way


class RemoteFuture:
    """A call's `RemoteOutput`, by `result()` or `await`."""

    def __init__(self, future: Any, convert: Callable[[Any], RemoteOutput]) -> None:
        self._future, self._convert = future, convert

    def result(self, timeout: float | None = None) -> RemoteOutput:
        """The output; waits for it, at most `timeout` seconds (then TimeoutError)."""
        return self._convert(self._future.result(timeout))

    def __await__(self) -> Generator[Any, None, RemoteOutput]:
        output = yield from self._future.__await__()
        return self._convert(output)


class RemoteClient:
    """A training client of Tinker's SDK that takes every loss of lossbook whose outputs the service has.

    training   the SDK's, or that of lossbook.integrations.tinker; what is not here is asked of it: `client.optim_step(...)`
    service    the service client that made it; without one no graph is uploaded
    api        the module of its data types, where that is not the one which its class comes from
    """

    def __init__(self, training: Any, service: Any = None, *, api: ModuleType | None = None) -> None:
        self.training, self.service = training, service
        self._api: Any = _api_of(training) if api is None else api
        self._looked: dict[str, str | None] = {}

    def __getattr__(self, name: str) -> Any:
        if name in ("training", "service"):  # asked by copy and pickle of an object that holds nothing
            raise AttributeError(name)
        return getattr(self.training, name)

    def forward_backward(
        self, data: Sequence[Any], loss: AnyLoss, config: Mapping[str, Any] | None = None, *, way: Way | None = None
    ) -> RemoteFuture:
        """Add a loss's gradient to the accumulated one.

        data     datums of lossbook or of the SDK, with all that the loss reads
        loss     an id, a `Loss` or a mixture; config: its settings
        way      the only way to take; by default the first that is open. The first call with a loss may ask the service

        Raises what `loss.check` raises for the data, LossContractError where no way is open.
        """
        made, datums = get_loss(loss, **(config or {})), as_datums(data)
        made.check(datums)
        chosen = self._chosen(made, datums, way)
        send = {"id": self._by_id, "traced": self._as_graph, "function": self._as_function}[chosen]

        def converted(output: Any) -> RemoteOutput:
            return RemoteOutput(list(output.loss_fn_outputs), _metrics(made, datums, output), chosen)

        return RemoteFuture(send(made, datums), converted)

    def way(self, data: Sequence[Any], loss: AnyLoss, config: Mapping[str, Any] | None = None) -> Way:
        """How a call would go. Raises as `forward_backward` does."""
        made, datums = get_loss(loss, **(config or {})), as_datums(data)
        made.check(datums)
        return self._chosen(made, datums, None)

    # --- which way ----------------------------------------------------------------------------------------------------

    def _chosen(self, loss: LossLike, datums: list[Datum], asked: Way | None) -> Way:
        if asked not in (None, *_WAYS):
            raise ConfigError(f"way={asked!r}: there are {', '.join(_WAYS)}")
        closed = []
        for way in _WAYS if asked is None else (asked,):
            why = {"id": self._no_id, "traced": self._no_graph, "function": _no_function}[way](loss, datums)
            if why is None:
                return way
            closed.append(f"{way}: {why}")
        raise LossContractError(f"{loss.name} cannot go to this service. {'; '.join(closed)}")

    def _no_id(self, loss: LossLike, datums: list[Datum]) -> str | None:
        """Why it cannot go by its id; None where it can."""
        if not isinstance(loss, Loss):
            return "a mixture has no id"
        if loss.name in _TINKERS:
            return f"the id {loss.name!r} means Tinker's own loss there"
        config = config_of(loss)
        try:
            known = get_loss(loss.name, **config)
        except LossbookError:
            return "it is not registered"
        if not isinstance(known, Loss) or known.spec.function is not loss.spec.function:
            return f"the id {loss.name!r} is another loss's"
        if odd := [key for key, value in config.items() if not isinstance(value, int | float | str)]:
            return f"its setting {odd[0]} is neither a number nor a text"
        whole = len(datums) <= _DATUMS and sum(_numbers(one) for one in datums) <= _NUMBERS
        if not whole and (loss.reduction != "sum" or loss.couples not in ("token", "datum")):
            return "the call is cut into several requests, and it must be divided, or coupled, as a whole"
        key = f"{loss.name} {config}"
        if key not in self._looked:
            self._looked[key] = self._refusal(loss, datums[: _FEW.get(loss.couples, len(datums))], config)
        return self._looked[key]

    def _refusal(self, loss: Loss, datums: list[Datum], config: Mapping[str, Any]) -> str | None:
        """What the service says to a forward of a few datums with that id; None where it runs it."""
        try:
            self.training.forward(self._sent(datums), loss.name, dict(config) or None).result()
        except Exception as error:
            if not is_refusal(error):
                raise
            return f"the service refuses it ({' '.join(str(error).split())[:200]})"
        return None

    def _no_graph(self, loss: LossLike, datums: list[Datum]) -> str | None:
        """Why it cannot go as a graph; None where it can."""
        if self.service is None or not hasattr(self.service, "create_custom_loss"):
            return "there is no service client to upload a graph with"
        if not isinstance(loss, Loss):
            return "a mixture is no graph of one datum"
        if (why := _no_function(loss, datums)) is not None:
            return why
        try:
            traced(loss, datums)
        except (TraceError, LossContractError) as error:
            return str(error)
        return None

    # --- sending ------------------------------------------------------------------------------------------------------

    def _by_id(self, loss: LossLike, datums: list[Datum]) -> Any:
        assert isinstance(loss, Loss)
        return self.training.forward_backward(self._sent(datums), loss.name, config_of(loss) or None)

    def _as_graph(self, loss: LossLike, datums: list[Datum]) -> Any:
        assert isinstance(loss, Loss)
        graph = traced(loss, datums).scaled(_SCALE)
        handles = _handles.setdefault(self.service, {})
        key = f"{str(graph).partition('(')[2]} {graph.ranks}"  # two losses of one formula are one graph
        if key not in handles:
            handles[key] = self.service.create_custom_loss(graph.function, graph.ranks).result()
        full = []
        for datum, scale in zip(datums, scales(loss, datums), strict=True):
            inputs = tensors_of(loss, datum)
            kept = {name: inputs[name] for name in graph.inputs if name != _SCALE}
            targets = datum.loss_fn_inputs["target_tokens"].to_torch()
            full.append(self._datum(datum, {"target_tokens": targets, **kept, _SCALE: torch.tensor(scale)}))
        return self.training.forward_backward_custom(full, handles[key])

    def _as_function(self, loss: LossLike, datums: list[Datum]) -> Any:
        bare = []
        for datum in datums:
            targets = datum.loss_fn_inputs["target_tokens"].to_torch()
            bare.append(self._datum(datum, {"target_tokens": targets, "weights": torch.ones(targets.shape)}))
        return self.training.forward_backward_custom(bare, loss.bind(datums))

    def _sent(self, datums: Sequence[Datum]) -> list[Any]:
        every = [{key: value.to_torch() for key, value in one.loss_fn_inputs.items()} for one in datums]
        return [self._datum(one, inputs) for one, inputs in zip(datums, every, strict=True)]

    def _datum(self, datum: Datum, tensors: Mapping[str, Tensor]) -> Any:
        """A datum of the service's API."""
        inputs = {
            key: self._api.TensorData(
                data=value.reshape(-1).tolist(),
                dtype="float32" if value.is_floating_point() else "int64",
                shape=list(value.shape),
            )
            for key, value in tensors.items()
        }
        tokens = self._api.ModelInput.from_ints(datum.model_input.to_ints())
        return self._api.Datum(model_input=tokens, loss_fn_inputs=inputs)


#: Graphs that a service client has uploaded: a session takes each once.
_handles: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()


def _api_of(training: Any) -> ModuleType:
    """The module that the client's class comes from, with the data types that it takes."""
    for kind in type(training).__mro__:
        for name in ("tinker", "lossbook.integrations.tinker"):
            if kind.__module__.startswith(f"{name}."):
                return sys.modules[name]
    raise ConfigError(
        f"{type(training).__name__} is no client of `tinker` or lossbook.integrations.tinker: give api=, its module of data types"
    )


def _no_function(loss: LossLike, datums: list[Datum]) -> str | None:
    """Why it cannot be the SDK's custom function; None where it can."""
    if other := [name for name in loss.outputs if name != "logprobs"]:
        return f"it reads the model's {' and '.join(other)}, and a service hands out logprobs only"
    return None


def _numbers(datum: Datum) -> int:
    """How many numbers a datum has; each takes at most 8 bytes, and the service's id of a key some more."""
    return len(datum.model_input.to_ints()) + sum(
        value.to_torch().numel() + 16 for value in datum.loss_fn_inputs.values()
    )


def _metrics(loss: LossLike, datums: Sequence[Datum], output: Any) -> dict[str, float]:
    """The loss's metrics at the logprobs that came back; the service's own of a loss that reads more than logprobs."""
    if loss.outputs != ("logprobs",):
        kinds = (":mean", ":sum", ":min", ":max")
        plain = {
            name: next((name[: -len(kind)] for kind in kinds if name.endswith(kind)), name) for name in output.metrics
        }
        return {name if name == "loss:sum" else plain[name]: float(value) for name, value in output.metrics.items()}
    logprobs = [one["logprobs"].to_torch() for one in output.loss_fn_outputs]
    value, metrics = loss(datums, logprobs)
    return {**metrics, "loss:sum": float(value.detach())}
