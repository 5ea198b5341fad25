"""How a model's layers run in training: checkpointed, compiled, or with their activations in the host's memory.

None of it changes a number beyond rounding. All of it is undone after each forward, so that sampling and checkpoints see
the plain model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...datums.errors import ModelError
from ..model.model import LoadedModel
from ..packing.attention import attending
from .settings import EngineSettings


@contextmanager
def layers_as_set(model: LoadedModel, settings: EngineSettings) -> Iterator[None]:
    """Inside, a forward runs the model's layers as `settings` say; its backward may come later.

    Raises ModelError where layers are to be checkpointed or compiled and transformers marks none as repeated.
    """
    layers = repeated_layers(model) if settings.checkpoint_layers or settings.compile_layers else []
    activations: AbstractContextManager[Any] = nullcontext()
    if settings.offload_activations:
        activations = torch.autograd.graph.save_on_cpu(pin_memory=model.device.type == "cuda")
    try:
        for layer in layers:
            layer.forward = _forward_of(layer, model, settings)
        with activations:
            yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def repeated_layers(model: LoadedModel) -> Sequence[nn.Module]:
    """The model's transformer layers. Raises ModelError where transformers marks none."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.backbone.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"{model.name} ({type(model.module).__name__}) has no layers that can be checkpointed or compiled one by one. "
            "Leave checkpoint_layers and compile_layers out"
        )
    return layers


def _forward_of(layer: nn.Module, model: LoadedModel, settings: EngineSettings) -> Callable[..., Any]:
    forward = layer.forward
    if settings.compile_layers:
        forward = functools.partial(_compiled(type(layer)), layer)
    if settings.checkpoint_layers and torch.is_grad_enabled():
        contexts = functools.partial(_same_attention_again, model)
        forward = functools.partial(checkpoint, forward, use_reentrant=False, context_fn=contexts)
    return forward


@functools.cache
def _compiled(kind: type[nn.Module]) -> Callable[..., Any]:
    """The class's forward compiled: one compilation serves all layers of a class."""
    return torch.compile(kind.forward, dynamic=True)


def _same_attention_again(model: LoadedModel) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts for a layer's two runs: by the second the model's attention function may have been exchanged."""
    return nullcontext(), attending(model, model.config._attn_implementation)
