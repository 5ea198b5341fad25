"""What may be done to a model's layers while they run: compiled, computed again in the backward, their memory offloaded.

None of it changes a number beyond rounding. All of it is taken off again after each forward, so that sampling and
checkpoints see the plain model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...datums.errors import ModelError
from ..packing.attention import attending

if TYPE_CHECKING:
    from ..model.load import LoadedModel


@dataclass
class LayerOptions:
    """How a model's repeated layers run in training.

    checkpoint  keep a layer's input only, and compute the layer again in the backward: about 4/3 of the FLOPs, and memory
                of one layer instead of all (Chen et al. 2016, arXiv:1604.06174)
    offload     keep what the backward needs in the host's memory
    compile     run each layer through torch.compile; needs a compiler, and minutes at the first call
    """

    checkpoint: bool = False
    offload: bool = False
    compile: bool = False
    _compiled: dict[type, Callable[..., Any]] = field(default_factory=dict, repr=False)

    @contextmanager
    def applied(self, model: LoadedModel) -> Iterator[None]:
        """The options hold inside, for a forward; its backward may come later. Raises ModelError for a model without
        layers that transformers marks as repeated."""
        layers = repeated_layers(model) if self.checkpoint or self.compile else []
        keep = (
            torch.autograd.graph.save_on_cpu(pin_memory=model.device.type == "cuda") if self.offload else nullcontext()
        )
        try:
            for layer in layers:
                layer.forward = self._wrapped(model, layer)
            with keep:
                yield
        finally:
            for layer in layers:
                layer.__dict__.pop("forward", None)

    def _wrapped(self, model: LoadedModel, layer: nn.Module) -> Callable[..., Any]:
        forward = layer.forward
        if self.compile:
            # The class's function, so that all layers of a kind share what was compiled.
            kind = type(layer)
            if kind not in self._compiled:
                self._compiled[kind] = torch.compile(kind.forward, dynamic=True)
            forward = functools.partial(self._compiled[kind], layer)
        if self.checkpoint and torch.is_grad_enabled():
            contexts = functools.partial(_same_attention_again, model.module)
            forward = functools.partial(checkpoint, forward, use_reentrant=False, context_fn=contexts)
        return forward


def repeated_layers(model: LoadedModel) -> Sequence[nn.Module]:
    """The model's transformer layers. Raises ModelError where transformers names none."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.backbone.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"{model.name} ({type(model.module).__name__}) has no layers that can be checkpointed or compiled one by one. "
            "Leave checkpoint_layers and compile_layers out"
        )
    return layers


def _same_attention_again(module: Any) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts of a layer's first and second run: by then the model may attend in another way."""
    return nullcontext(), attending(module, module.config._attn_implementation)
