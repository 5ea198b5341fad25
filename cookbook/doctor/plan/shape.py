"""`Shape`: the numbers of a model that its memory, traffic and operations follow from, counted on its outline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ....datums.errors import ModelError
from ....trainer.engine.activation_memory import repeated_layers
from ....trainer.model.model import LoadedModel
from .outline import counted_attention

#: Tokens of the two forwards that are counted. What they keep is linear in tokens: a slope and what does not depend on them.
COUNTED = (32, 64)
#: Bytes of a 4-bit weight: NF4, and 1 byte of scale for each 64 weights, itself scaled by a float32 for each 256 of them
#: (Dettmers et al. 2023, arXiv:2305.14314 section 3).
FOUR_BIT = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Tensors:
    """The sharded parameters of one group, which FSDP gathers together.

    rows   the size of each parameter's first dimension, along which it is cut
    sizes  how many numbers each has
    """

    rows: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many numbers there are in all."""
        return sum(self.sizes)

    def of_rank(self, ranks: int) -> int:
        """How many of them the rank with most holds: whole rows of each parameter."""
        return sum(-(-rows // ranks) * (size // rows) for rows, size in zip(self.rows, self.sizes, strict=True))


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward keeps for its backward, outside of the parameters: `per_token` for each token, and `fixed`.

    fixed  copies of weights in the dtype of products, which autocast makes and the graph holds
    """

    per_token: float
    fixed: int


@dataclass(frozen=True)
class Shape:
    """A model as it is trained. Numbers are of parameters unless said otherwise.

    layers        the sharded parameters of each layer
    root          those of no layer: embeddings, last norm, output head
    adapters      numbers in adapters, which every rank holds whole; 0 where all weights are trained
    linear        weights of linear layers inside the layers
    head          [vocabulary, width] of the output head; [0, 0] for an encoder
    head_is_own   whether the head's weight is no embedding too
    weight_bytes, product_bytes   of one number of the sharded weights, and of products
    kept          by a forward without checkpointing
    checkpointed  by one with checkpointing: the layers' inputs, and what is kept outside of them
    one_layer     by the layer that keeps most, while the backward runs it again
    multiplied    weights that a token is multiplied with in the layers
    queried       per layer, heads times their size: what a token's attention to another costs is 4 of that in operations
    cached        bytes of keys and values that sampling keeps for each token
    """

    name: str
    layers: tuple[Tensors, ...]
    root: Tensors
    adapters: int
    linear: int
    head: tuple[int, int]
    head_is_own: bool
    weight_bytes: int
    product_bytes: int
    kept: Kept
    checkpointed: Kept
    one_layer: Kept
    multiplied: int
    queried: int
    cached: int

    @property
    def trains_all(self) -> bool:
        """Whether all weights are trained."""
        return self.adapters == 0

    @property
    def sharded(self) -> int:
        """All sharded parameters."""
        return self.root.numbers + sum(layer.numbers for layer in self.layers)

    @property
    def largest_layer(self) -> int:
        """Parameters of the largest layer."""
        return max(layer.numbers for layer in self.layers)


def shape_of(model: LoadedModel) -> Shape:
    """Count an outline that is ready to be trained. Raises ModelError where a forward cannot be run without numbers."""
    layers = repeated_layers(model)
    inside = {id(p) for layer in layers for p in layer.parameters()}
    names = {id(p): name for name, p in model.module.named_parameters()}
    rest = [p for p in model.module.parameters() if id(p) not in inside]
    frozen_base = model.lora is not None
    adapters = sum(p.numel() for p in model.module.parameters() if p.requires_grad) if frozen_base else 0
    linear = [
        m.weight
        for layer in layers
        for m in layer.modules()
        if isinstance(m, nn.Linear) and "lora_" not in names[id(m.weight)]
    ]
    kept, checkpointed, one_layer = _kept(model, layers)
    head = _head(model)
    return Shape(
        name=model.name,
        layers=tuple(_tensors(layer.parameters(), frozen_base) for layer in layers),
        root=_tensors(rest, frozen_base),
        adapters=adapters,
        linear=sum(weight.numel() for weight in linear),
        head=(0, 0) if head is None else (int(head.shape[0]), int(head.shape[1])),
        head_is_own=head is not None
        and sum(head is p for _, p in model.module.named_parameters(remove_duplicate=False)) == 1,
        weight_bytes=next(model.module.parameters()).element_size(),
        product_bytes=model.product_dtype.itemsize,
        kept=kept,
        checkpointed=checkpointed,
        one_layer=one_layer,
        multiplied=_multiplied(model, layers),
        **_attention(model, len(layers)),
    )


def _tensors(parameters: Any, frozen_base: bool) -> Tensors:
    own = [p for p in parameters if not (frozen_base and p.requires_grad)]
    return Tensors(tuple(p.shape[0] for p in own), tuple(p.numel() for p in own))


def _head(model: LoadedModel) -> Tensor | None:
    if model.kind == "encoder":
        return None
    layer: Any = model.module.get_output_embeddings()  # type: ignore[operator]
    return getattr(layer, "base_layer", layer).weight


def _multiplied(model: LoadedModel, layers: Sequence[nn.Module]) -> int:
    """Matrices of the layers; of fused experts [E, out, in] those that one token is sent to."""
    text = model.config.get_text_config()
    total = 0
    for parameter in (p for layer in layers for p in layer.parameters()):
        if model.lora is not None and parameter.requires_grad:
            continue
        chosen = getattr(text, "num_experts_per_tok", None) if parameter.dim() == 3 else None
        total += (
            parameter.numel() * (min(chosen, len(parameter)) if chosen else 1) // (len(parameter) if chosen else 1)
            if parameter.dim() > 1
            else 0
        )
    return total


def _attention(model: LoadedModel, layers: int) -> dict[str, int]:
    text = model.config.get_text_config()
    heads = int(getattr(text, "num_attention_heads", 0) or 0)
    width = int(getattr(text, "hidden_size", 0) or 0)
    size = int(getattr(text, "head_dim", None) or (width // heads if heads else 0))
    key_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    return {"queried": heads * size, "cached": 2 * layers * key_heads * size * model.product_dtype.itemsize}


# --- what a forward keeps ---------------------------------------------------------------------------------------------


@dataclass
class _Count:
    """Bytes of a forward's storages that are kept: for the backward, by each layer, and as inputs of layers."""

    saved: dict[int, tuple[Any, int]] = field(default_factory=dict)
    inputs: dict[int, tuple[Any, int]] = field(default_factory=dict)
    layers: list[int] = field(default_factory=list)
    own: set[int] = field(default_factory=set)  # storages of parameters

    def note(self, tensor: Tensor, among: dict[int, tuple[Any, int]]) -> Tensor:
        """Note a tensor's storage, which is held so that no other takes its place."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.own:
            among.setdefault(storage._cdata, (storage, storage.nbytes()))
        return tensor

    @property
    def total(self) -> int:
        return sum(size for _, size in self.saved.values())


def _kept(model: LoadedModel, layers: Sequence[nn.Module]) -> tuple[Kept, Kept, Kept]:
    try:
        with _without_numbers(model) as own:
            counts = [_counted(model, layers, tokens, own) for tokens in COUNTED]
    except Exception as error:  # an architecture may read numbers, which tensors without memory do not have
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"what a forward of {model.name} ({type(model.module).__name__}) keeps cannot be counted without its weights: {reason}"
        ) from error
    largest = [max(count.layers) for count in counts]
    inputs = [sum(size for _, size in count.inputs.values()) for count in counts]
    outside = [count.total - sum(count.layers) for count in counts]
    return (
        _line([count.total for count in counts]),
        _line([a + b for a, b in zip(inputs, outside, strict=True)]),
        _line(largest),
    )


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

    mode = FakeTensorMode()
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
        with mode:
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


def _counted(model: LoadedModel, layers: Sequence[nn.Module], tokens: int, own: set[int]) -> _Count:
    count = _Count(own=own)

    def begin(_layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        for tensor in tree_leaves((given, named)):
            if isinstance(tensor, Tensor):
                count.note(tensor, count.inputs)
        count.layers.append(-count.total)

    def end(*_: Any) -> None:
        count.layers[-1] += count.total

    handles = [layer.register_forward_pre_hook(begin, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(end) for layer in layers]
    options = {} if model.kind == "encoder" else {"use_cache": False}
    try:
        noted = torch.autograd.graph.saved_tensors_hooks(lambda t: count.note(t, count.saved), lambda t: t)
        with noted, torch.enable_grad(), counted_attention(model), model.precision():
            model.backbone(torch.zeros(1, tokens, dtype=torch.int64), **options)
    finally:
        for handle in handles:
            handle.remove()
    return count
