"""Which keys a sample sees: the model's own mask functions, evaluated once per block of steps for all of its positions.

transformers asks for masks at each forward, once for each kind of layer (full attention, windows, chunks), and hands out a
function of positions. Positions here are those within a sample, without padding, so windows and chunks are the model's own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionMaskInterface

from .cache import NAME, Shape

#: transformers' form: (batch, head, query position, key position) -> seen.
MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Masks(Protocol):
    """Gives the masks of a forward, in the order in which the model asks for them."""

    def next_mask(self, function: MaskFunction, dtype: torch.dtype) -> Tensor:
        """[copies, 1, slots, columns] of one more kind of layer."""
        ...


#: The masks of the forward that is running.
CURRENT: ContextVar[Masks] = ContextVar(f"{NAME}_masks")


def additive_masks(
    function: MaskFunction, shape: Shape, lengths: Tensor, positions: Tensor, dtype: torch.dtype
) -> Tensor:
    """[steps, copies, 1, slots, columns] of `dtype`: 0 where a sample sees a key, else -inf.

    lengths    [copies] tokens of each copy's prompt
    positions  [steps, copies] of the query within its sample
    """
    device, copies = lengths.device, shape.copies
    # Where each key stands in its sample: padding below 0, then the prompt, then the sample's own tokens.
    keys = torch.arange(shape.width + shape.room, device=device) - shape.width + lengths[:, None]  # [copies, .]
    queries = positions[:, :, None]
    batch, head = torch.arange(copies, device=device)[:, None], torch.zeros((), dtype=torch.int64, device=device)
    seen = function(batch, head, queries, keys) & (keys >= 0) & (keys <= queries)
    prompts, own = seen.split([shape.width, shape.room], 2)
    same = torch.eye(shape.slots, dtype=torch.bool, device=device)[:, None]  # a slot's own tokens: [slots, 1, slots]
    steps = len(positions)
    parts = [
        prompts[:, :, None].expand(-1, -1, shape.slots, -1),
        (own[:, :, None, :, None] & same).flatten(3),
    ]
    hidden = torch.zeros(steps, copies, shape.slots, shape.columns, dtype=dtype, device=device)
    return hidden.masked_fill_(~torch.cat(parts, 3), float("-inf"))[:, :, None]


def _mask(
    *, mask_function: MaskFunction, dtype: torch.dtype, use_vmap: bool = False, q_length: int = 1, **others: Any
) -> Tensor:
    """What transformers calls for the mask of a forward."""
    if use_vmap or q_length != 1:
        raise NotImplementedError("a mask that is not a function of positions, or several tokens per row")
    return CURRENT.get().next_mask(mask_function, dtype)


AttentionMaskInterface.register(NAME, _mask)
