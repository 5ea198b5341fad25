"""How a model's layers run in training: checkpointed, compiled, or with their activations in the host's memory; what they keep.

None of it changes a number beyond rounding. All of it is undone after each forward, so that sampling and checkpoints see
the plain model.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from ...datums.errors import ModelError
from ..model.model import LoadedModel
from ..packing.attention import attending
from ..routing.routers import routed
from ..sharding.layers import transformer_layers
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
    layers = transformer_layers(model)
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
        contexts = functools.partial(_alike_again, model)
        forward = functools.partial(checkpoint, forward, use_reentrant=False, context_fn=contexts)
    return forward


@functools.cache
def _compiled(kind: type[nn.Module]) -> Callable[..., Any]:
    """The class's forward compiled: one compilation serves all layers of a class."""
    return torch.compile(kind.forward, dynamic=True)


def _alike_again(model: LoadedModel) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts for a layer's two runs: by the second its attention function and its routes may have been exchanged."""
    return nullcontext(), _both(attending(model, model.config._attn_implementation), routed(model, model.routes))


@contextmanager
def _both(first: AbstractContextManager[Any], second: AbstractContextManager[Any]) -> Iterator[None]:
    with first, second:
        yield


@contextmanager
def held_bytes(device: torch.device) -> Iterator[Callable[[], int]]:
    """Context around a forward. Yields a function that returns how many of the bytes allocated inside are still held.

    CUDA's allocator counts them. Elsewhere the results of operations are followed until they are freed.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.memory_allocated(device) - before
        return
    results = _Results()
    with results:
        yield results.held


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device; for others than CUDA, in the host's memory."""
    if device.type != "cuda":
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


class _Results(TorchDispatchMode):
    """Follows the memory of what operations return, views aside."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in () if func.is_view else tree_leaves(results):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                ref = StorageWeakRef(storage)
                self._sizes.setdefault(ref.cdata, (ref, storage.nbytes()))
        return results

    def held(self) -> int:
        return sum(size for ref, size in self._sizes.values() if not ref.expired())
