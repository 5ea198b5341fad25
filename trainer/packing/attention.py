"""Attention over a packed row, block by block.

Within a block attention is plain causal attention, which needs no mask. Where sequences share a prefix, its keys and
values come first. The layout is passed through the forward's keyword arguments, so that activation checkpointing has it
again when it repeats a layer in the backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .rows import Block

#: The name of `block_attention` among transformers' attention functions.
NAME = "lossbook_blocks"


class Layout:
    """The blocks of a packed row as one object; with a tuple torch.compile would recompile for each number of blocks."""

    def __init__(self, blocks: tuple[Block, ...]) -> None:
        self.blocks = blocks


@torch.compiler.disable
def block_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: Layout | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query [1, H, T, D], key and value [1, G, T, D] of one packed row to [1, T, H, D].

    sliding_window: how many tokens a token sees, itself included; None for all. Raises NotImplementedError for soft-capped
    scores, sinks and masks of an architecture's own; probes then refuse it.
    """
    _refuse_unknown(
        {
            "a forward that does not hand its options down to attention": packed_layout is None,
            "several rows": len(query) != 1,
            "soft-capped scores": softcap is not None,
            "attention sinks": s_aux is not None,
            "a mask or bias of its own": others.get("position_bias") is not None or attention_mask is not None,
            "a sliding window that is not passed to attention": sliding_window is None and _should_slide(module),
        },
        module,
    )
    assert packed_layout is not None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, D]
    sizes = [block.tokens for block in packed_layout.blocks]
    blocks = zip(packed_layout.blocks, q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
    attended = [
        _attend(block, queries, (keys, values), _prefix(block, k, v), dropout, scaling, sliding_window)
        for block, queries, keys, values in blocks
    ]
    return (attended[0] if len(attended) == 1 else torch.cat(attended))[None], None


def _refuse_unknown(reasons: dict[str, bool], module: nn.Module) -> None:
    """Raise NotImplementedError with the first reason that is true, and the layer."""
    for reason, present in reasons.items():
        if present:
            raise NotImplementedError(f"layer {getattr(module, 'layer_idx', '?')} has {reason}")


def _should_slide(module: nn.Module) -> bool:
    """Whether the configuration gives this layer a sliding window."""
    config: Any = getattr(module, "config", None)
    if getattr(config, "sliding_window", None) is None:
        return False
    kinds, index = getattr(config, "layer_types", None), getattr(module, "layer_idx", None)
    return kinds is None or index is None or kinds[index] == "sliding_attention"


def _prefix(block: Block, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor] | None:
    if block.prefix is None:
        return None
    seen = slice(*block.prefix)
    return keys[seen], values[seen]


def _attend(
    block: Block,
    query: Tensor,
    own: tuple[Tensor, Tensor],
    prefix: tuple[Tensor, Tensor] | None,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Attention of one block: [tokens, heads, D] in and out. own, prefix: keys and values."""
    rows = len(block.lengths)
    q, k, v = (_as_rows(block, x, rows) for x in (query, *own))
    if prefix is not None:
        k, v = (torch.cat([x.expand(rows, *x.shape), y], dim=1) for x, y in zip(prefix, (k, v), strict=True))
    mask = _mask(q.shape[1], k.shape[1], window, q.device)
    attended = scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    flat = attended.transpose(1, 2).flatten(0, 1)
    return flat if block.unpadded is None else flat.index_select(0, block.unpadded)


def _as_rows(block: Block, tokens: Tensor, rows: int) -> Tensor:
    """[tokens, heads, D] to [B, L, heads, D]."""
    padded = tokens if block.padded is None else tokens.index_select(0, block.padded)
    return padded.unflatten(0, (rows, -1))


def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """[queries, keys] bool, where the last query sees the last key; None where causal attention needs no mask."""
    if queries == keys and (window is None or keys <= window):
        return None
    back = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    seen = back >= 0
    return seen if window is None else seen & (back < window)


@contextmanager
def attending(module: Any, implementation: str) -> Iterator[None]:
    """Inside, the model's layers call one of transformers' attention functions; afterwards the one they called before."""
    before = module.config._attn_implementation
    try:
        module.set_attn_implementation(implementation)
        yield
    finally:
        module.set_attn_implementation(before)
