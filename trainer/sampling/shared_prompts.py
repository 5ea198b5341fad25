"""A KV cache that keeps each prompt's keys and values once for all its samples, and the attention that reads it.

transformers' own cache repeats the prompt for every sample and copies all of it at each token. Here prompts are stored
apart from continuations, and a continuation grows in place. Attention multiplies the queries of all samples of a prompt
with the prompt's keys in one product, each sample's queries with its own keys in another, and takes one softmax over both.
Masks are transformers' own, so sliding windows and padding are as the model defines them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import sdpa_mask

#: The name under which transformers knows the attention below.
NAME = "lossbook_shared_prompts"
#: Tokens allocated for a continuation at first; doubled when used up, at most to the limit.
FIRST_ROOM = 64


class Layout:
    """Which rows belong to which prompt, the same for all layers.

    slots      rows per prompt: the most that any prompt has
    positions  [rows] the position of each row among prompts x slots
    full       whether the rows fill all positions, in order
    limit      tokens that a continuation can have at most
    """

    positions: Tensor

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.prompts: list[int] = []
        self.slots = 0
        self.full = True

    def arrange(self, prompts: Sequence[int], device: torch.device) -> list[int]:
        """Lay out rows with these prompts, in ascending order; returns the prompts that still have a row."""
        kept = sorted(set(prompts))
        self.prompts = [kept.index(prompt) for prompt in prompts]
        self.slots = max(prompts.count(prompt) for prompt in kept)
        positions = [prompt * self.slots + i - self.prompts.index(prompt) for i, prompt in enumerate(self.prompts)]
        self.full = len(positions) == len(kept) * self.slots
        self.positions = torch.tensor(positions, device=device)
        return kept

    def spread(self, rows: Tensor) -> Tensor:
        """[rows, heads, ...] to [prompts, heads, slots, ...], with zeros at empty positions."""
        if not self.full:
            empty = rows.new_zeros((self.prompts[-1] + 1) * self.slots, *rows.shape[1:])
            rows = empty.index_copy_(0, self.positions, rows)
        return rows.unflatten(0, (-1, self.slots)).transpose(1, 2)

    def gather(self, spread: Tensor) -> Tensor:
        """[prompts, heads, slots, ...] to [rows, heads, ...], the inverse of `spread`."""
        rows = spread.transpose(1, 2).flatten(0, 1)
        return rows if self.full else rows.index_select(0, self.positions)


class SharedPromptLayer(CacheLayerMixin):
    """One layer's keys and values.

    keys, values  of the prompts, [prompts, heads, length, d]
    own           of the continuations, keys and values: [2, prompts, heads, slots, room, d]
    used          tokens of `room` that are filled
    """

    is_sliding = False  # every position is kept; the mask hides those outside a window

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.own: Tensor | None = None
        self.used = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Store the prompts."""
        self.keys, self.values, self.is_initialized = key_states.contiguous(), value_states.contiguous(), True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store prompts at the first call, then one token per row; returns the continuations so far, for `attention`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        key, value = (self.layout.spread(states[:, :, 0]) for states in (key_states, value_states))
        own = self._room_for(key)
        own[0, :, :, :, self.used] = key
        own[1, :, :, :, self.used] = value
        self.used += 1
        keys, values = own[:, :, :, :, : self.used]
        keys.shared = self  # type: ignore[attr-defined]  # from here `attention` reads the prompts
        return keys, values

    def _room_for(self, token: Tensor) -> Tensor:
        """`own` with memory for one more token [prompts, heads, slots, d]."""
        if self.own is None or self.used == self.own.shape[4]:
            room = min(max(FIRST_ROOM, 2 * self.used), max(self.layout.limit, self.used + 1))
            own = token.new_empty(2, *token.shape[:3], room, token.shape[3])
            if self.own is not None:
                own[..., : self.used, :] = self.own
            self.own = own
        return self.own

    def select(self, prompts: Tensor, slots: Tensor, kept: Tensor | None) -> None:
        """Move continuations from (prompts, slots) [new prompts, new slots]; keep only the prompts `kept` (None for all)."""
        if self.own is not None:
            moved = self.own[:, prompts, :, slots, : self.used].permute(2, 0, 3, 1, 4, 5)
            own = moved.new_empty(*moved.shape[:4], *self.own.shape[4:])
            own[..., : self.used, :] = moved
            self.own = own
        if kept is not None and self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.index_select(0, kept), self.values.index_select(0, kept)

    def get_seq_length(self) -> int:
        """Positions so far, in prompt and continuation together."""
        return 0 if self.keys is None else self.keys.shape[2] + self.used

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of the mask and the first one's position."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    get_max_cache_shape = get_max_length  # its name in earlier versions of transformers


class SharedPromptCache(Cache):
    """A transformers cache. The first forward reads prompts; after `batch_repeat_interleave` each has several rows."""

    def __init__(self, limit: int) -> None:
        self.layout = Layout(limit)
        layer: Any = partial(SharedPromptLayer, self.layout)
        super().__init__(layer_class_to_replicate=layer)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Give each prompt `repeats` rows. Nothing is copied."""
        first: Any = self.layers[0]
        keys: Tensor = first.keys
        self.layout.arrange([prompt for prompt in range(len(keys)) for _ in range(repeats)], keys.device)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows, in ascending order, and the prompts that have one."""
        layout = self.layout
        count, slots, positions = layout.prompts[-1] + 1, layout.slots, layout.positions[indices]
        kept = layout.arrange([layout.prompts[row] for row in indices.tolist()], indices.device)
        prompts = None if len(kept) == count else torch.tensor(kept, device=indices.device)
        source = positions.new_zeros(len(kept) * layout.slots).index_copy_(0, layout.positions, positions)
        source = source.view(len(kept), layout.slots)  # where each row was before; an empty position takes any
        for layer in self.layers:
            layer.select(source // slots, source % slots, prompts)  # type: ignore[union-attr]


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """softmax(scaling · q kᵀ) v for one query per row, over the row's prompt and its own tokens.

    query           [rows, query heads, 1, d]
    key, value      [prompts, heads, slots, used, d], from SharedPromptLayer.update; query heads are a multiple of heads
    attention_mask  [rows, 1, 1, length + used], True (or 0, if it is added) where a row attends; None: everywhere
    returns         [rows, 1, query heads, d]
    """
    shared: SharedPromptLayer = key.shared  # type: ignore[attr-defined]
    layout, rows, heads, width = shared.layout, query.shape[0], key.shape[1], key.shape[4]
    assert shared.keys is not None
    assert shared.values is not None
    _refuse_unknown(query, attention_mask, others)
    queries = layout.spread(query.reshape(rows, heads, -1, width))  # [prompts, heads, slots, query heads per head, d]
    queries = queries * (width**-0.5 if scaling is None else scaling)
    on_prompts = (queries.flatten(2, 3) @ shared.keys.mT).unflatten(2, queries.shape[2:4])
    scores = torch.cat([on_prompts, queries @ key.mT], -1)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    if attention_mask is not None:
        mask = layout.spread(attention_mask)
        if mask.dtype == torch.bool:
            scores.masked_fill_(
                ~mask, torch.finfo(scores.dtype).min
            )  # not -inf: an empty position may attend nowhere, which would give NaN
        else:
            scores += mask
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    on_prompts, on_own = weights.split([shared.keys.shape[2], key.shape[3]], -1)
    attended = on_own @ value
    attended += (on_prompts.flatten(2, 3) @ shared.values).view_as(attended)
    return layout.gather(attended).reshape(rows, 1, -1, value.shape[4]), None


def _refuse_unknown(query: Tensor, mask: Tensor | None, others: dict[str, Any]) -> None:
    """Raise NotImplementedError for inputs that this attention would ignore, such as sinks or a bias."""
    unknown = [name for name, x in others.items() if isinstance(x, Tensor) and x.is_floating_point()]
    if query.shape[2] != 1 or (mask is not None and mask.shape[1] != 1):
        unknown.append("several queries per row, or a mask that differs between heads")
    if unknown:
        raise NotImplementedError(f"attention over shared prompts does not know {', '.join(unknown)}")


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
