"""What a forward keeps for its backward, counted by running it on tensors without memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ....datums.errors import ModelError
from ....trainer.model.model import LoadedModel
from .outline import counted_attention

#: Tokens of the two forwards that are counted. What they keep is linear in tokens: a slope and what does not depend on them.
COUNTED = (32, 64)
#: Layers of each kind that run; the others keep what the last of them does.
TRIED = 2


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward keeps for its backward, outside of the parameters: `per_token` for each token, and `fixed`.

    fixed  copies of weights in the dtype of products, which autocast makes and the graph holds
    """

    per_token: float
    fixed: int


def kept_by(model: LoadedModel, layers: Sequence[nn.Module]) -> tuple[Kept, Kept, Kept]:
    """What an outline's forward keeps; what it keeps with checkpointing; and what the layer keeps that keeps most.

    With checkpointing that is the inputs of `layers`, and what is kept outside of them. Raises ModelError where the model reads
    numbers as it runs, such as how many tokens an expert has.
    """
    try:
        with _without_numbers(model) as own, _silent("torch._subclasses.fake_tensor"):  # it logs what is raised below
            counts = [_counted(model, layers, tokens, own) for tokens in COUNTED]
    except Exception as error:  # an architecture may fail in any way
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"what a forward of {model.name} ({type(model.module).__name__}) keeps cannot be counted without its weights: {reason}"
        ) from error
    return (
        _line([count.saved.total for count in counts]),
        _line([count.inputs.total + count.saved.total - sum(count.layers) for count in counts]),
        _line([max(count.layers) for count in counts]),
    )


@contextmanager
def _silent(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _line(sizes: Sequence[int]) -> Kept:
    (few, many), (one, two) = COUNTED, sizes
    slope = (two - one) / (many - few)
    return Kept(slope, round(one - few * slope))


@contextmanager
def _without_numbers(model: LoadedModel) -> Iterator[set[int]]:
    """Inside, the model's parameters and buffers are fake tensors of a CPU; yields the storages of the parameters.

    A fake tensor has a device and no memory, so that autocast and dtypes apply as they would.
    """
    from torch._subclasses import FakeTensorMode

    made: dict[int, Any] = {}
    places: list[tuple[Any, str, Tensor]] = [
        (held, name, tensor)
        for module in model.module.modules()
        for held in (module._parameters, module._buffers)
        for name, tensor in held.items()
        if tensor is not None
    ]
    device = model.device
    try:
        with FakeTensorMode():
            for held, name, tensor in places:
                held[name] = made.setdefault(id(tensor), _like(tensor))
            model.device = torch.device("cpu")
            yield {tensor.untyped_storage()._cdata for tensor in made.values() if isinstance(tensor, nn.Parameter)}
    finally:
        model.device = device
        for held, name, tensor in places:
            held[name] = tensor


def _like(tensor: Tensor) -> Tensor:
    """A tensor or parameter of the same shape and dtype on the device of this context."""
    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


@dataclass
class _Storages:
    """Bytes of storages, each counted once, and of others that stand for more of the same. own: those left out."""

    own: set[int]
    more: int = 0
    sizes: dict[int, tuple[Any, int]] = field(default_factory=dict)

    def note(self, tensor: Tensor) -> Tensor:
        """Count a tensor's storage; it is held, so that no other takes its place."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.own:
            self.sizes.setdefault(storage._cdata, (storage, storage.nbytes()))
        return tensor

    @property
    def total(self) -> int:
        """Bytes."""
        return self.more + sum(size for _, size in self.sizes.values())


@dataclass
class _Count:
    """What one forward keeps: all, the inputs of layers, and by layer."""

    saved: _Storages
    inputs: _Storages
    layers: list[int] = field(default_factory=list)

    def around(self, layer: nn.Module, like: list[tuple[int, int]]) -> Callable[..., Any]:
        """The layer's forward, counted. like: what layers of its kind kept before it, and their inputs' bytes; the last stands
        for this one where there are enough, and this one hands on its first input."""
        forward = layer.forward

        def counted(*given: Any, **named: Any) -> Any:
            if len(like) >= TRIED:
                self.saved.more += like[-1][0]
                self.inputs.more += like[-1][1]
                self.layers.append(like[-1][0])
                return given[0]
            before, inputs = self.saved.total, self.inputs.total
            for tensor in tree_leaves((given, named)):
                if isinstance(tensor, Tensor):
                    self.inputs.note(tensor)
            output = forward(*given, **named)
            self.layers.append(self.saved.total - before)
            if given and isinstance(output, Tensor) and isinstance(given[0], Tensor) and output.shape == given[0].shape:
                like.append((self.layers[-1], self.inputs.total - inputs))
            return output

        return counted


def _counted(model: LoadedModel, layers: Sequence[nn.Module], tokens: int, own: set[int]) -> _Count:
    count = _Count(_Storages(own), _Storages(own))
    kinds: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    noted = torch.autograd.graph.saved_tensors_hooks(count.saved.note, lambda tensor: tensor)
    options = {} if model.kind == "encoder" else {"use_cache": False}
    try:
        for layer in layers:
            kind = (type(layer), *((name, tuple(p.shape), p.requires_grad) for name, p in layer.named_parameters()))
            layer.forward = count.around(layer, kinds.setdefault(kind, []))
        with noted, torch.enable_grad(), counted_attention(model), model.precision():
            model.backbone(torch.zeros(1, tokens, dtype=torch.int64), **options)
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
    return count
