"""Attention over a packed row, block by block: an attention function for transformers' models.

Within a block it is plain causal attention, which needs no mask; behind a shared prefix the prefix's keys and values
come first. The layout travels with the forward's keyword arguments, so that it is at hand again when activation
checkpointing repeats a layer in the backward.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .rows import SHORTEST_PREFIX, Block, PackedRow, pack_row

if TYPE_CHECKING:
    from ..model.load import LoadedModel

#: Its name among transformers' attention functions.
NAME = "lossbook_blocks"


class Layout:
    """The blocks of a packed row, as one object: torch.compile would compile anew for each number of blocks in a tuple."""

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

    sliding_window: how many tokens a token sees, itself included; None for all. Raises NotImplementedError for what an
    architecture does beyond this (soft-capped scores, sinks, a mask of its own), so that it is not packed.
    """
    if packed_layout is None or softcap is not None or s_aux is not None or len(query) != 1:
        raise NotImplementedError("not attention over one packed row of blocks")
    if others.get("position_bias") is not None or attention_mask is not None:
        raise NotImplementedError("an architecture with a mask or bias of its own")
    if sliding_window is None and _should_slide(module):
        raise NotImplementedError("a window that the attention function is not told of")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, D]
    sizes = [block.tokens for block in packed_layout.blocks]
    own = zip(packed_layout.blocks, q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
    attended = [
        _attend(block, mine, (keys, values), _prefix(block, k, v), dropout, scaling, sliding_window)
        for block, mine, keys, values in own
    ]
    return (attended[0] if len(attended) == 1 else torch.cat(attended))[None], None


def _should_slide(module: nn.Module) -> bool:
    """Whether this layer's configuration asks for a window."""
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
    """One block: [tokens, heads, D] in and out. own, prefix: keys and values."""
    rows = len(block.lengths)
    q, k, v = (_as_rows(block, x, rows) for x in (query, *own))
    if prefix is not None:
        k, v = (torch.cat([x.expand(rows, *x.shape), mine], dim=1) for x, mine in zip(prefix, (k, v), strict=True))
    mask = _mask(q.shape[1], k.shape[1], window, q.device)
    found = scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    flat = found.transpose(1, 2).flatten(0, 1)
    return flat if block.unpadded is None else flat.index_select(0, block.unpadded)


def _as_rows(block: Block, tokens: Tensor, rows: int) -> Tensor:
    """[tokens, heads, D] to [B, L, heads, D]."""
    padded = tokens if block.padded is None else tokens.index_select(0, block.padded)
    return padded.unflatten(0, (rows, -1))


def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """[queries, keys] bool, the last query seeing the last key; None where causal attention alone says it."""
    if queries == keys and (window is None or keys <= window):
        return None
    back = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    seen = back >= 0
    return seen if window is None else seen & (back < window)


@contextmanager
def attending_in_blocks(module: Any) -> Iterator[None]:
    """The model's layers call `block_attention` inside; afterwards what they called before."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, block_attention)
    with attending(module, NAME):
        yield


@contextmanager
def attending(module: Any, implementation: str) -> Iterator[None]:
    """The model's layers call one of transformers' attention functions inside; afterwards what they called before."""
    before = module.config._attn_implementation
    try:
        module.set_attn_implementation(implementation)
        yield
    finally:
        module.set_attn_implementation(before)


def hidden_in_blocks(model: LoadedModel, row: PackedRow) -> Tensor:
    """[T, d]: last hidden states of a packed row."""
    tokens, positions = (torch.from_numpy(x)[None].to(model.device) for x in (row.tokens, row.positions))
    layout = Layout(tuple(block.to(model.device) for block in row.blocks))
    with attending_in_blocks(model.module):
        found = model.backbone(
            input_ids=tokens, position_ids=positions, use_cache=False, packed_layout=layout
        ).last_hidden_state
    return found[0]


def fits_in_blocks(model: LoadedModel) -> bool:
    """Whether the model gives the same hidden states in a packed row; tried once, on a few tokens.

    Not so: encoders, layers that carry a state along the row (Mamba, convolutions), attention in chunks, soft-capped
    scores, attention sinks, and architectures that do not use transformers' attention functions.
    """
    if model.in_blocks is None:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.in_blocks = model.kind == "decoder" and _layers_attend(model) and _agrees(model)
    return model.in_blocks


def _layers_attend(model: LoadedModel) -> bool:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    return not kinds and getattr(config, "attention_chunk_size", None) is None


def _agrees(model: LoadedModel) -> bool:
    """Two sequences behind one prefix and a shorter one, in a row and each alone."""
    tokens = np.arange(SHORTEST_PREFIX + 8) % model.vocab_size
    sequences = [tokens, np.concatenate([tokens[:-7], tokens[:3]]), tokens[5:9]]
    was_training = model.module.training
    model.module.eval()
    try:
        row = pack_row(sequences)
        together = hidden_in_blocks(model, row)
        for sequence, places in zip(sequences, row.places, strict=True):
            alone = model.backbone(input_ids=torch.from_numpy(sequence)[None].to(model.device), use_cache=False)
            alone = alone.last_hidden_state[0].double()
            # Norms and routers compute in float32 even in a float64 model.
            precision = max(torch.finfo(together.dtype).eps, torch.finfo(torch.float32).eps)
            tolerance = 64 * precision * alone.abs().max().clamp(min=1.0)
            if not (alone - together[torch.from_numpy(places)].double()).abs().max() <= tolerance:
                return False
    except Exception:  # an architecture may refuse the arguments in any way
        return False
    finally:
        model.module.train(was_training)
    return True
