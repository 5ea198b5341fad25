"""Hidden states of several layers from one forward, each as the model would end with it.

Layers are counted as transformers counts `hidden_states`: 0 is the embedding of the tokens, n the output of the n-th layer. What
the model applies to its last layer's output, such as a final norm, is applied to each: this is what a model gives that is cut off
behind that layer. States are read as the next layer gets them, since what transformers returns as `hidden_states` begins with the
tokens in most architectures and with the first layer in some.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...datums.errors import ModelError
from ..model.model import LoadedModel

#: Modules that ran, in order, with what they read and what they returned.
Calls = list[tuple[nn.Module, Tensor, Tensor]]


def repeated_parts(model: LoadedModel) -> list[nn.Module]:
    """The layers of a model: the longest list of modules in its backbone."""
    lists = [part for part in model.backbone.modules() if isinstance(part, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def states_of(model: LoadedModel, arguments: dict[str, Any], layers: Sequence[int]) -> Tensor:
    """Last hidden states [B, T, d]; with layers, [B, T, (1 + L) d]: behind them the states of these layers.

    Raises ModelError for an architecture whose layers are not called with hidden states.
    """
    if not layers:
        return model.backbone(**arguments).last_hidden_state
    parts = repeated_parts(model)
    with _read_by({i: parts[i] for i in layers}) as states, _watched(model.backbone) as calls:
        last = model.backbone(**arguments).last_hidden_state
    if lacking := [i for i in layers if i not in states or states[i].shape != last.shape]:
        raise ModelError(
            f"{model.name} ({type(model.module).__name__}) gives no hidden states of layer {lacking[0]}: take a loss without layers"
        )
    chosen = [states[i] for i in layers]
    for module in _ending(calls, last):
        chosen = [module(state) for state in chosen]
    return torch.cat([last, *chosen], -1)


@contextmanager
def _read_by(parts: dict[int, nn.Module]) -> Iterator[dict[int, Tensor]]:
    """The hidden states that each layer reads at its first call inside."""
    states: dict[int, Tensor] = {}

    def keep(index: int, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        state = given[0] if given else named.get("hidden_states")
        if isinstance(state, Tensor):
            states.setdefault(index, state)

    def hook(index: int) -> Any:
        return lambda _, given, named: keep(index, given, named)

    handles = [part.register_forward_pre_hook(hook(index), with_kwargs=True) for index, part in parts.items()]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _watched(backbone: nn.Module) -> Iterator[Calls]:
    """The calls inside of modules that neither are in a layer nor hold layers: embeddings, a final norm."""
    calls: Calls = []

    def note(module: nn.Module, given: tuple[Any, ...], returned: Any) -> None:
        if given and isinstance(given[0], Tensor) and isinstance(returned, Tensor):
            calls.append((module, given[0], returned))

    handles = [module.register_forward_hook(note) for module in _outside_layers(backbone)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _outside_layers(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            continue
        if any(isinstance(below, nn.ModuleList) for below in child.modules()):
            yield from _outside_layers(child)
        else:
            yield child


def _ending(calls: Calls, last: Tensor) -> list[nn.Module]:
    """The modules, in order, that made the last hidden states of the last layer's output; [] where these are the same."""
    ending: list[nn.Module] = []
    wanted = last
    for module, given, returned in reversed(calls):
        if returned.data_ptr() == wanted.data_ptr() and returned.shape[-1] == wanted.shape[-1]:  # or a view of it
            ending.insert(0, module)
            wanted = given
    return ending
