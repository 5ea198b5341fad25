"""Which modules of a model choose experts, and whether its tokens can be sent to given ones; tried once for each model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...datums.errors import LossbookError, ModelError, located
from ...datums.routing import decode_routing
from ...datums.types import Datum
from ..model.model import LoadedModel
from ..model.verdict import Verdict
from .replay import Routers, is_topk, sending

PROBE = "routing"


def check_routing(model: LoadedModel, datums: Sequence[Datum]) -> None:
    """Raise ModelError where a datum carries routing matrices and the model's tokens cannot be sent to given experts."""
    if any(datum.model_input.routing_matrices is not None for datum in datums):
        routers_of(model)


def routers_of(model: LoadedModel) -> Routers:
    """The model's routers. Raises ModelError, with the reason, where tokens cannot be sent past them."""
    if model.ranks.mates is not None:
        raise ModelError("routing_matrices were not tried with tensor_parallel: leave one of the two out")
    if not (verdict := model.tried(PROBE, lambda: _tried(model))):
        raise ModelError(
            f"{model.name} ({model.config.model_type}) cannot be given routing_matrices: {verdict.reason}. Leave them out: the "
            "model then sends its tokens to experts itself"
        )
    return model.routers


def decoded_routes(model: LoadedModel, datums: Sequence[Datum]) -> list[np.ndarray] | None:
    """For each datum, [tokens, layers, width] int32: the experts of its tokens, -1 where the model's routers choose; or None.

    None: no datum carries routing matrices. Raises ModelError as `routers_of` does, ShapeError and DtypeError naming the datum.
    """
    if all(datum.model_input.routing_matrices is None for datum in datums):
        return None
    routers, routes = routers_of(model), []
    sizes = {"layers": len(routers.modules), "width": routers.width, "num_experts": routers.num_experts}
    for i, datum in enumerate(datums):
        matrices = datum.model_input.routing_matrices
        try:
            routes.append(decode_routing([""] * datum.model_input.length if matrices is None else matrices, **sizes))
        except LossbookError as error:
            raise located(error, f"datum {i} of {len(datums)}") from None
    return routes


@contextmanager
def routed(model: LoadedModel, routes: Tensor | None) -> Iterator[None]:
    """Inside, a forward sends tokens to the experts `routes`, as `sending` takes them; None: to those of the model's choice."""
    before = model.routes
    model.routes = routes
    try:
        with nullcontext() if routes is None else sending(routers_of(model), routes):
            yield
    finally:
        model.routes = before


@dataclass
class _Seen:
    """What a forward did: modules with experts that ran, and each choice of experts with the modules around it."""

    blocks: list[nn.Module] = field(default_factory=list)
    choices: list[tuple[nn.Module, nn.Module, int, int]] = field(default_factory=list)  # router, block, experts, width
    elsewhere: list[str] = field(default_factory=list)


def _tried(model: LoadedModel) -> Verdict:
    if model.kind != "decoder":
        return Verdict(False, "it is an encoder")
    was_training = model.module.training
    model.module.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seen = _watched(model)
            reason = _reason(seen)
            if not reason:
                _, _, num_experts, width = seen.choices[0]
                model.routers = Routers([router for router, *_ in seen.choices], num_experts, width)
                reason = _sent_elsewhere(model, model.routers, [block for _, block, *_ in seen.choices])
    finally:
        model.module.train(was_training)
    return Verdict(not reason, reason)


def _reason(seen: _Seen) -> str:
    """Why tokens cannot be sent to given experts; "" where they can, as far as one forward shows."""
    if not seen.blocks:
        return "no part of it is known to hold experts that a router chooses"
    if seen.elsewhere:
        return f"{seen.elsewhere[0]} chooses experts too, outside of the layers that hold them"
    chose = [block for _, block, *_ in seen.choices]
    if len({id(block) for block in chose}) != len(chose):
        return "a layer chooses its experts several times"
    if missing := [type(block).__name__ for block in seen.blocks if all(block is not one for one in chose)]:
        return f"{missing[0]} does not choose its experts by one torch.topk over their scores"
    if len({(experts, width) for *_, experts, width in seen.choices}) > 1:
        return "its layers differ in how many experts they have or send a token to"
    return ""


def _watched(model: LoadedModel) -> _Seen:
    """What a forward of a few tokens does."""
    seen, stack = _Seen(), []

    def enter(module: nn.Module, _given: Any) -> None:
        stack.append(module)
        if _experts_in(module) and all(module is not one for one in seen.blocks):
            seen.blocks.append(module)

    def leave(_module: nn.Module, _given: Any, _result: Any) -> None:
        stack.pop()

    hooks = [
        hook
        for module in model.backbone.modules()
        for hook in (module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True))
    ]
    try:
        with _Watching(seen, stack):
            _run(model, 8)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


class _Watching(TorchFunctionMode):
    """Notes every top-k over rows of scores, and within which modules it was called."""

    def __init__(self, seen: _Seen, stack: list[nn.Module]) -> None:
        super().__init__()
        self._seen, self._stack = seen, stack

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if is_topk(func) and result[1].ndim == 2 and self._stack:
            scores: Tensor = args[0] if args else (kwargs or {})["input"]
            block = next((module for module in reversed(self._stack) if _experts_in(module)), None)
            if block is None:
                self._seen.elsewhere.append(type(self._stack[-1]).__name__)
            elif _experts_in(block) == scores.shape[1]:
                self._seen.choices.append((self._stack[-1], block, scores.shape[1], result[1].shape[1]))
        return result


def _experts_in(module: nn.Module) -> int:
    """How many experts a layer of experts has; 0 for any other module."""
    experts = module._modules.get("experts")
    if isinstance(experts, nn.ModuleList):
        return len(experts)
    count = getattr(experts, "num_experts", 0)
    return count if isinstance(count, int) else 0


def _sent_elsewhere(model: LoadedModel, routers: Routers, blocks: Sequence[nn.Module]) -> str:
    """Whether experts are handed other tokens as told, each with a weight that counts: "", or what they were handed."""
    tokens = min(model.max_length or 1 << 62, max(8, math.ceil(2 * routers.num_experts / routers.width)))
    places = torch.arange(tokens, device=model.device)[:, None, None] * routers.width
    layers = torch.arange(len(blocks), device=model.device)[:, None]
    routes = (places + layers + torch.arange(routers.width, device=model.device)) % routers.num_experts
    handed: dict[int, list[Tensor]] = {}
    hooks = [
        _experts(block).register_forward_pre_hook(
            lambda _module, args, keywords, layer=layer: handed.update({layer: [*args, *keywords.values()]}),
            with_kwargs=True,
        )
        for layer, block in enumerate(blocks)
    ]
    try:
        with sending(routers, routes):
            _run(model, tokens)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, block in enumerate(blocks):
        given = [x for x in handed.get(layer, ()) if isinstance(x, Tensor) and x.shape == routes[:, layer].shape]
        indices = [x for x in given if not x.is_floating_point()]
        weights = [x for x in given if x.is_floating_point()]
        if not (indices and weights):
            return f"{type(block).__name__} does not hand its experts indices and weights [tokens, {routers.width}]"
        if not torch.equal(indices[0], routes[:, layer].to(indices[0].dtype)):
            return f"{type(block).__name__} hands its experts other indices than its router was told"
        if not bool((weights[0].isfinite() & (weights[0] != 0)).all()):
            return f"{type(block).__name__} gives some experts no weight, such as those outside of the groups that it chose"
    return ""


def _experts(block: nn.Module) -> nn.Module:
    experts = block._modules["experts"]
    assert experts is not None
    return experts


def _run(model: LoadedModel, tokens: int) -> None:
    ids = (torch.arange(tokens, device=model.device)[None] * 7 + 3) % model.vocab_size
    model.backbone(input_ids=ids, use_cache=False)
