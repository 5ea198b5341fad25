"""A cache that keeps each prompt's keys and values once for all its samples, and the attention that reads it.

transformers' own cache holds the prompt again for every sample and copies all of it at each token. Here the prompts
lie apart from the continuations, and a continuation grows in place. Attention multiplies the queries of all samples of
a prompt with that prompt's keys in one product, those of each sample with its own keys in another, and takes one
softmax over both. Masks are transformers' own, so sliding windows and padding hold as the model defines them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import sdpa_mask

#: The name under which transformers knows the attention below.
NAME = "lossbook_shared_prompts"
#: Tokens a continuation has room for at first. The room doubles when it is used up, at most to what can come.
FIRST_ROOM = 64


class Layout:
    """Which rows belong to which prompt, the same for all layers.

    slots   places for rows at each prompt: the most that any prompt has
    places  [rows] the place of each row among prompts x slots, or None when they are all taken, in order
    limit   tokens that a continuation can have at most
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.prompts: list[int] = []
        self.slots = 0
        self.places: Tensor | None = None

    def arrange(self, prompts: Sequence[int], device: torch.device) -> list[int]:
        """Lay out rows with these prompts, in ascending order; returns the prompts that still have a row."""
        kept = sorted(set(prompts))
        self.prompts = [kept.index(prompt) for prompt in prompts]
        self.slots = max(prompts.count(prompt) for prompt in kept)
        places = [prompt * self.slots + i - self.prompts.index(prompt) for i, prompt in enumerate(self.prompts)]
        full = len(places) == len(kept) * self.slots
        self.places = None if full else torch.tensor(places, device=device)
        return kept

    def spread(self, rows: Tensor) -> Tensor:
        """[rows, ...] to [prompts, slots, ...], with zeros in empty places."""
        if self.places is not None:
            spread = rows.new_zeros(len(set(self.prompts)) * self.slots, *rows.shape[1:])
            rows = spread.index_copy_(0, self.places, rows)
        return rows.view(-1, self.slots, *rows.shape[1:])

    def gather(self, spread: Tensor) -> Tensor:
        """[prompts, slots, ...] to [rows, ...], the inverse of `spread`."""
        rows = spread.flatten(0, 1)
        return rows if self.places is None else rows.index_select(0, self.places)


class SharedPromptLayer(CacheLayerMixin):
    """One layer. keys, values: of the prompts, [prompts, heads, length, d]; own: of the rows, [2, rows, heads, room, d]."""

    is_sliding = False  # every position is kept; the mask hides those outside a window

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.own: Tensor | None = None
        self.used = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values, self.is_initialized = key_states.contiguous(), value_states.contiguous(), True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Prompts the first time; then one token a row, of which the rows' own keys and values so far come back."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        if self.own is None or self.used == self.own.shape[3]:
            self._make_room(key_states)
        assert self.own is not None
        self.own[0, :, :, self.used] = key_states[:, :, 0]
        self.own[1, :, :, self.used] = value_states[:, :, 0]
        self.used += 1
        keys, values = self.own[:, :, :, : self.used]
        keys.shared = self  # type: ignore[attr-defined]  # where the attention finds the prompts
        return keys, values

    def _make_room(self, like: Tensor) -> None:
        room = min(max(FIRST_ROOM, 2 * self.used), max(self.layout.limit, self.used + 1))
        own = like.new_empty(2, *like.shape[:2], room, like.shape[3])
        if self.own is not None:
            own[:, :, :, : self.used] = self.own
        self.own = own

    def select(self, rows: Tensor, prompts: Tensor | None) -> None:
        """Keep these rows, and these prompts (None: all)."""
        if self.own is not None:
            own = self.own.new_empty(2, len(rows), *self.own.shape[2:])
            own[:, :, :, : self.used] = self.own[:, :, :, : self.used].index_select(1, rows)
            self.own = own
        if prompts is not None:
            self.keys, self.values = (x.index_select(0, prompts) for x in (self.keys, self.values))

    def get_seq_length(self) -> int:
        """Positions so far, of prompt and continuation."""
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
        keys = self.layers[0].keys
        assert keys is not None
        self.layout.arrange([prompt for prompt in range(len(keys)) for _ in range(repeats)], keys.device)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows, in ascending order, and the prompts that have one."""
        layout = self.layout
        count = len(set(layout.prompts))
        kept = layout.arrange([layout.prompts[row] for row in indices.tolist()], indices.device)
        prompts = None if len(kept) == count else torch.tensor(kept, device=indices.device)
        for layer in self.layers:
            layer.select(indices, prompts)  # type: ignore[union-attr]


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
    """softmax(scaling · q kᵀ) v for one query a row, over the row's prompt and its own tokens.

    query           [rows, query heads, 1, d]
    key, value      [rows, heads, used, d], from SharedPromptLayer.update; query heads are a multiple of heads
    attention_mask  [rows, 1, 1, length + used], True (or 0, if it is added) where attention may look; None: everywhere
    returns         [rows, 1, query heads, d]
    """
    shared: SharedPromptLayer = key.shared  # type: ignore[attr-defined]
    layout, (rows, heads, used, width) = shared.layout, key.shape
    assert shared.keys is not None
    assert shared.values is not None
    unknown = [name for name, x in others.items() if isinstance(x, Tensor) and x.is_floating_point()]
    if unknown or query.shape[2] != 1 or (attention_mask is not None and attention_mask.shape[1] != 1):
        raise NotImplementedError(
            f"attention over shared prompts does not know {unknown or 'masks that heads differ in'}"
        )
    if scaling is None:
        scaling = width**-0.5
    queries = query.reshape(rows, heads, -1, width)  # [rows, heads, query heads a head, d]
    scores = torch.cat([_with_prompts(layout, queries, shared.keys.mT), queries @ key.mT], -1)
    scores *= scaling
    if softcap is not None:
        scores = (scores / softcap).tanh_().mul_(softcap)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores.masked_fill_(~attention_mask, -torch.inf)
    elif attention_mask is not None:
        scores += attention_mask
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    on_prompt, on_own = weights.split([shared.keys.shape[2], used], -1)
    found = on_own @ value
    found += _with_prompts(layout, on_prompt, shared.values)
    return found.reshape(rows, 1, -1, value.shape[3]), None


def _with_prompts(layout: Layout, rows: Tensor, prompts: Tensor) -> Tensor:
    """Each row [heads, m, k] times its prompt's matrix [heads, k, n]: [rows, heads, m, n], one product a prompt and head."""
    spread = layout.spread(rows).transpose(1, 2)  # [prompts, heads, slots, m, k]
    product = spread.flatten(2, 3) @ prompts
    return layout.gather(product.unflatten(2, spread.shape[2:4]).transpose(1, 2))


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def attending_configs(module: nn.Module) -> list[Any]:
    """The configurations in which a module's parts look up how to attend."""
    configs = [getattr(part, "config", None) for part in module.modules()]
    return list({id(config): config for config in configs if hasattr(config, "_attn_implementation")}.values())


@contextmanager
def attending(configs: Sequence[Any]) -> Iterator[None]:
    """Modules with these configurations attend through `attention` inside, and as before afterwards."""
    found = [config._attn_implementation_internal for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = NAME  # the public setter would go on to other configurations
        yield
    finally:
        for config, implementation in zip(configs, found, strict=True):
            config._attn_implementation_internal = implementation
