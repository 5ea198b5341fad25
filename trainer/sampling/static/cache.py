"""Keys and values in buffers of fixed size, written in place by index, and one attention call per layer that reads them.

A prompt lies in the buffer once for up to `slots` of its samples. Their own tokens follow it, token by token: all slots'
first tokens, then all their second ones. To the attention the samples of a copy are the queries of one sequence, and so are
the query heads that share a key head: one call needs neither repeated keys nor `enable_gqa`, which with a mask would take
the slow kernel on CUDA. The mask says which keys are whose.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

#: The name under which transformers knows the attention and the masks of this folder.
NAME = "lossbook_static"


@dataclass(frozen=True)
class Shape:
    """What a buffer holds.

    copies  of prompts
    slots   samples of each copy
    width   columns of a prompt, which is padded on the left
    room    tokens that each sample can have
    """

    copies: int
    slots: int
    width: int
    room: int

    @property
    def rows(self) -> int:
        """Samples."""
        return self.copies * self.slots

    @property
    def columns(self) -> int:
        """Keys of a copy."""
        return self.width + self.room * self.slots


class StaticLayer(CacheLayerMixin):
    """One layer's keys and values, [copies, heads, columns, d] each."""

    is_sliding = False  # every position is kept; the mask hides those outside a window

    def __init__(self, cache: StaticCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for the heads and widths of these states. Zeros: a hidden key must be finite."""
        shape = self.cache.shape
        self.keys, self.values = (
            states.new_zeros(shape.copies, states.shape[1], shape.columns, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store prompts while the cache reads them, else one token per row; returns all that `attention` reads."""
        cache, shape = self.cache, self.cache.shape
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        if cache.owners is not None:
            for buffer, states in ((self.keys, key_states), (self.values, value_states)):
                buffer[:, :, shape.width - states.shape[2] : shape.width] = states.index_select(0, cache.owners)
            return key_states, value_states
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            buffer.index_copy_(2, cache.written, grid(states[:, :, 0], shape.slots).transpose(1, 2))
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Positions so far: none while prompts are read. Later there is no one answer: rows have lengths of their own."""
        if self.cache.owners is None:
            raise NotImplementedError("a forward that asks for the length of a cache whose rows have several")
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of the mask and the first one's position, as transformers' own masks need them for prompts."""
        return query_length, 0

    def get_max_length(self) -> int:
        """No limit that transformers should know."""
        return -1

    get_max_cache_shape = get_max_length  # its name in earlier versions of transformers


class StaticCache(Cache):
    """A transformers cache of StaticLayers.

    owners   [copies] which of the prompts that are being read each copy holds; None once they are read
    written  [slots] the columns that the next tokens are written to
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.owners: Tensor | None = None
        self.written: Tensor = torch.empty(0, dtype=torch.int64, device="cpu")
        layer: Any = partial(StaticLayer, self)
        super().__init__(layer_class_to_replicate=layer)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """None: masks of single tokens are made by `masks`, which knows where they are."""
        return 0

    def adopt(self, other: StaticCache, copies: Tensor | None) -> None:
        """Take over the prompts and tokens of these copies (None: of all) of a cache of the same slots and width, and no more room."""
        layers: list[Any] = list(other.layers)
        for theirs, ours in zip(layers, self._allocated(layers), strict=True):
            for mine, its in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
                mine[:, :, : its.shape[2]] = its if copies is None else its.index_select(0, copies)

    def _allocated(self, like: list[Any]) -> list[Any]:
        """Its layers, allocated for the heads and widths of another cache's."""
        for theirs in like[len(self.layers) :]:
            self.layers.append(StaticLayer(self))
            self.layers[-1].lazy_initialization(theirs.keys, theirs.values)  # type: ignore[union-attr]
        return self.layers


def grid(rows: Tensor, slots: int) -> Tensor:
    """[rows, ...] to [copies, slots, ...]."""
    return rows.unflatten(0, (-1, slots))


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """softmax(scaling · q kᵀ + mask) v for one query per row.

    query           [rows, query heads, 1, d]
    key, value      [copies, heads, columns, d], from StaticLayer.update; query heads are a multiple of heads
    attention_mask  [copies, 1, slots, columns], added to the scores: 0 where a sample sees a key, else -inf
    s_aux           [query heads] the score of a key of value 0 that every query sees (attention sinks)
    returns         [rows, 1, query heads, d]
    """
    _refuse_unknown(query, attention_mask, others)
    assert attention_mask is not None
    copies, heads, _, width = key.shape
    slots, groups = len(query) // copies, query.shape[1] // heads
    queries = query.reshape(copies, slots, heads, groups, width).transpose(1, 2).flatten(2, 3)
    mask = _repeated(attention_mask, groups) if slots > 1 else attention_mask
    if softcap is None and s_aux is None:
        attended = scaled_dot_product_attention(queries, key, value, attn_mask=mask, scale=scaling)
    else:
        sinks = None if s_aux is None else s_aux.view(1, heads, 1, groups).expand(copies, -1, slots, -1).flatten(2)
        attended = _by_hand(queries, key, value, mask, width**-0.5 if scaling is None else scaling, softcap, sinks)
    return attended.unflatten(2, (slots, groups)).transpose(1, 2).reshape(len(query), 1, -1, value.shape[3]), None


def _repeated(mask: Tensor, groups: int) -> Tensor:
    """The mask of each slot for all query heads of a group, made once for all layers that are handed this mask."""
    if groups == 1:
        return mask
    kept = vars(mask).setdefault("repeated", {})
    if groups not in kept:
        kept[groups] = mask.repeat_interleave(groups, 2)
    return kept[groups]


def _by_hand(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """The same with soft-capped scores, and with sinks [copies, heads, queries], which no fused kernel knows."""
    scores = (query * scaling) @ key.mT
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    scores += mask
    if sinks is not None:
        scores = torch.cat([scores, sinks[..., None]], -1)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return weights[..., : key.shape[2]] @ value


def _refuse_unknown(query: Tensor, mask: Tensor | None, others: dict[str, Any]) -> None:
    """Raise NotImplementedError for inputs that this attention would ignore, such as a bias, and for masks not made by `masks`."""
    unknown = [name for name, x in others.items() if isinstance(x, Tensor) and x.is_floating_point()]
    if query.shape[2] != 1 or mask is None:
        unknown.append("several queries per row, or no mask")
    if unknown:
        raise NotImplementedError(f"attention over a static cache does not know {', '.join(unknown)}")


AttentionInterface.register(NAME, attention)
