"""`Shape`: the numbers of a model that its memory, traffic and operations follow from, counted on its outline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ....trainer.engine.activation_memory import repeated_layers
from ....trainer.model.model import LoadedModel
from ....trainer.sharding.layers import separate_layers
from .kept import Kept, kept_by

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
class Shape:
    """A model as it is trained. Numbers are of parameters unless said otherwise.

    layers        the sharded parameters of each layer
    root          those of no layer: embeddings, last norm, output head
    adapters      numbers in adapters, which every rank holds whole; 0 where all weights are trained
    linear        weights of linear layers inside the layers
    head          [vocabulary, width] of the output head; [0, 0] for an encoder
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
    layers = separate_layers(model) or repeated_layers(
        model
    )  # as they are gathered one by one; an error where there is none
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
    kept, checkpointed, one_layer = kept_by(model, layers)
    head = _head(model)
    return Shape(
        name=model.name,
        layers=tuple(_tensors(layer.parameters(), frozen_base) for layer in layers),
        root=_tensors(rest, frozen_base),
        adapters=adapters,
        linear=sum(weight.numel() for weight in linear),
        head=(0, 0) if head is None else (int(head.shape[0]), int(head.shape[1])),
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
