"""Router replay: in a forward, tokens go to given experts, and the routers say with which weights.

A router scores all experts, takes the `k` of highest score by `torch.topk`, and makes weights of the scores at those indices. Here
the indices are exchanged within that call, and the scores are read at them: the rest of the router's own code runs as it is. So
the weights are those that the router gives the experts now, and their gradient reaches the router (R3, arXiv:2510.11370).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...datums.errors import ModelError


@dataclass(frozen=True)
class Routers:
    """The modules that choose experts, in the order of their layers.

    num_experts  of each layer
    width        the experts that a token is sent to
    """

    modules: Sequence[nn.Module]
    num_experts: int
    width: int


@contextmanager
def sending(routers: Routers, routes: Tensor) -> Iterator[None]:
    """Inside, a forward sends tokens to the experts `routes`.

    routes: [tokens of the flattened rows, layers, width] int64 on the model's device, -1 where the router chooses
    """
    before = [router.__dict__.get("forward") for router in routers.modules]
    try:
        for layer, router in enumerate(routers.modules):
            router.forward = _sending(router.forward, routes[:, layer], routers)
        yield
    finally:
        for router, own in zip(routers.modules, before, strict=True):
            router.__dict__.pop("forward", None)
            if own is not None:
                router.forward = own


def _sending(forward: Callable[..., Any], chosen: Tensor, routers: Routers) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:
        with _Chosen(chosen, routers) as choice:
            result = forward(*arguments, **keywords)
        if choice.count != 1:
            raise ModelError(
                f"a router chose experts {choice.count} times for {len(chosen)} tokens, and not once as when tried"
            )
        return result

    return call


class _Chosen(TorchFunctionMode):
    """Exchanges the indices of the one `topk` over the scores of all experts."""

    def __init__(self, chosen: Tensor, routers: Routers) -> None:
        super().__init__()
        self._chosen, self._routers, self.count = chosen, routers, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not is_topk(func):
            return result
        scores: Tensor = args[0] if args else (kwargs or {})["input"]
        tokens, width = self._chosen.shape
        if scores.shape != (tokens, self._routers.num_experts) or result[1].shape != (tokens, width):
            return result
        self.count += 1
        indices = torch.where(self._chosen >= 0, self._chosen, result[1])
        return torch.return_types.topk((scores.gather(1, indices), indices))


def is_topk(func: Any) -> bool:
    """Whether this is torch's top-k, as a function or as a tensor's method."""
    return func is torch.topk or func is Tensor.topk
