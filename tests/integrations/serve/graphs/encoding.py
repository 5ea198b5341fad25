"""Graphs as the SDK's own encoder writes them, and graphs written by hand."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook.integrations.serve.graphs import Graph, read_graph

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # inside the SDK, not ours to mend
    custom_loss = pytest.importorskip(
        "tinker.lib.public_interfaces.custom_loss", reason="the official SDK comes with lossbook[serve]"
    )

#: What is said about a request's inputs.
LOGPROBS = [{"name": "logprobs", "rank": 1}]


def uploaded(function: Callable[..., Any], ranks: Mapping[str, int]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(graph, inputs) of `create_custom_loss(function, ranks)`, through JSON as on the wire."""
    handle = custom_loss.trace_loss(function, ranks, "session")
    graph = json.loads(custom_loss.encode_graph(handle).model_dump_json())
    return graph, [{"name": one.name, "rank": one.rank} for one in handle.inputs]


def read(function: Callable[..., Any], ranks: Mapping[str, int]) -> Graph:
    """The function as a graph that was uploaded and read."""
    return read_graph(*uploaded(function, ranks))


def node(target: str, *args: Any, op: str = "call_function", name: str = "x", **kwargs: Any) -> dict[str, Any]:
    """A node written by hand; "@name" stands for the result of a node, also in lists."""
    return {
        "op": op,
        "name": name,
        "target": target,
        "args": [_encoded(one) for one in args],
        "kwargs": {key: _encoded(one) for key, one in kwargs.items()},
    }


def _encoded(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("@"):
        return {"ref": value[1:]}
    return [_encoded(one) for one in value] if isinstance(value, list) else value


def placeholder(name: str = "logprobs") -> dict[str, Any]:
    return node(name, op="placeholder", name=name)


def output(loss: str = "@loss", metrics: Mapping[str, Any] | None = None) -> dict[str, Any]:
    entries = {name: _encoded(value) for name, value in (metrics or {}).items()}
    return node("output", {"tuple": [_encoded(loss), {"dict": entries}]}, op="output", name="output")


def graph(*nodes: dict[str, Any], last: dict[str, Any] | None = None) -> dict[str, Any]:
    """A graph of one input, these nodes, and the sum of node `x` plus the input as its loss."""
    ending = (
        []
        if last is not None
        else [
            node("operator.add", "@logprobs", "@x", name="added"),
            node("sum", "@added", op="call_method", name="loss"),
        ]
    )
    return {"format": 1, "nodes": [placeholder(), *nodes, *ending, last or output()]}


def gradient(value: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(value, leaf)[0]


Tensors = Sequence[Tensor]
