"""Hidden states of several sequences, padded or in one packed row; and attention over a packed row, block by block.

Within a block attention is plain causal attention, which needs no mask. Where sequences share a prefix, its keys and
values come first. The layout is passed through the forward's keyword arguments, so that activation checkpointing has it
again when it repeats a layer in the backward.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..model.model import LoadedModel
from .micro_batches import SHORTEST_PREFIX
from .rows import Block, PackedRow, pack_row

Batching = Literal["padded", "packed"]

#: The name of `block_attention` among transformers' attention functions.
NAME = "lossbook_blocks"


def hidden_states(
    model: LoadedModel,
    sequences: Sequence[Sequence[int] | np.ndarray],
    batching: Batching | None,
    rows: Tensor | None = None,
) -> Tensor:
    """[tokens of all sequences, d]: last hidden states, sequence after sequence, without padding; or only those in `rows`.

    "padded" (or None): one row per sequence. A decoder needs no mask for padding on the right, since no token looks ahead;
    an encoder gets one. "packed": one row for all, with attention block by block and shared prefixes computed once. A
    decoder that does not support this gets position ids that restart at each sequence, from which transformers keeps
    attention within a sequence.
    """
    sequences = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    if batching == "packed" and model.kind == "decoder":
        if supports_packing(model):
            # Dropout in a shared prefix would be the same for all its sequences.
            row = pack_row(sequences, share=not model.module.training)
            positions = torch.from_numpy(np.concatenate(row.positions))
            return _hidden_of_row(model, row)[(positions if rows is None else positions[rows]).to(model.device)]
        tokens = torch.from_numpy(np.concatenate(sequences)).unsqueeze(0).to(model.device)
        position_ids = torch.cat([torch.arange(len(s)) for s in sequences]).unsqueeze(0).to(model.device)
        hidden = model.backbone(input_ids=tokens, position_ids=position_ids, use_cache=False).last_hidden_state[0]
    else:
        hidden = _hidden_of_padded(model, sequences)
    return hidden if rows is None else hidden[rows.to(hidden.device)]


def _hidden_of_padded(model: LoadedModel, sequences: Sequence[np.ndarray]) -> Tensor:
    """[tokens of all sequences, d], computed with one padded row per sequence."""
    longest = max(len(s) for s in sequences)
    padded = np.zeros((len(sequences), longest), dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=bool)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = True
    tokens, real = torch.from_numpy(padded).to(model.device), torch.from_numpy(mask).to(model.device)
    if model.kind == "encoder":
        hidden = model.backbone(input_ids=tokens, attention_mask=real.long()).last_hidden_state
    else:
        hidden = model.backbone(input_ids=tokens, use_cache=False).last_hidden_state
    return hidden.reshape(-1, hidden.shape[-1]) if bool(mask.all()) else hidden[real]


def _hidden_of_row(model: LoadedModel, row: PackedRow) -> Tensor:
    """[T, d]: last hidden states of a packed row."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, block_attention)
    tokens, positions = (torch.from_numpy(x)[None].to(model.device) for x in (row.tokens, row.position_ids))
    layout = Layout(tuple(block.to(model.device) for block in row.blocks))
    with attending(model.module, NAME):
        output = model.backbone(input_ids=tokens, position_ids=positions, use_cache=False, packed_layout=layout)
    return output.last_hidden_state[0]


def supports_packing(model: LoadedModel) -> bool:
    """Whether the model gives the same hidden states in a packed row; tried once, on a few tokens.

    False for encoders, layers that carry a state along the row (Mamba, convolutions), attention in chunks, soft-capped
    scores, attention sinks, and architectures that do not use transformers' attention functions.
    """
    if model.supports_packing is None:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.supports_packing = model.kind == "decoder" and _layers_attend(model) and _agrees(model)
    return model.supports_packing


def _layers_attend(model: LoadedModel) -> bool:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    return not kinds and getattr(config, "attention_chunk_size", None) is None


def _agrees(model: LoadedModel) -> bool:
    """Compare a packed row of two sequences with a shared prefix and a shorter one with each sequence alone."""
    tokens = np.arange(SHORTEST_PREFIX + 8) % model.vocab_size
    sequences = [tokens, np.concatenate([tokens[:-7], tokens[:3]]), tokens[5:9]]
    was_training = model.module.training
    model.module.eval()
    try:
        row = pack_row(sequences)
        together = _hidden_of_row(model, row)
        for sequence, positions in zip(sequences, row.positions, strict=True):
            alone = model.backbone(input_ids=torch.from_numpy(sequence)[None].to(model.device), use_cache=False)
            alone = alone.last_hidden_state[0].double()
            # Norms and routers compute in float32 even in a float64 model.
            precision = max(torch.finfo(together.dtype).eps, torch.finfo(torch.float32).eps)
            tolerance = 64 * precision * alone.abs().max().clamp(min=1.0)
            if not (alone - together[torch.from_numpy(positions)].double()).abs().max() <= tolerance:
                return False
    except Exception:  # an architecture may refuse the arguments with any error
        return False
    finally:
        model.module.train(was_training)
    return True


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
    scores, sinks and masks of an architecture's own; `supports_packing` is then False.
    """
    if packed_layout is None or softcap is not None or s_aux is not None or len(query) != 1:
        raise NotImplementedError("not attention over one packed row of blocks")
    if others.get("position_bias") is not None or attention_mask is not None:
        raise NotImplementedError("an architecture with a mask or bias of its own")
    if sliding_window is None and _should_slide(module):
        raise NotImplementedError("a sliding window that is not passed to the attention function")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, D]
    sizes = [block.tokens for block in packed_layout.blocks]
    blocks = zip(packed_layout.blocks, q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
    attended = [
        _attend(block, queries, (keys, values), _prefix(block, k, v), dropout, scaling, sliding_window)
        for block, queries, keys, values in blocks
    ]
    return (attended[0] if len(attended) == 1 else torch.cat(attended))[None], None


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
