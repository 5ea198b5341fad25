"""One forward pass of a micro-batch: from datums to the outputs that a loss reads, at the positions where it reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import ShapeError
from ...datums.types import Datum
from ...losses.batch.outputs import Outputs
from ...losses.batch.pack import join
from ...losses.batch.positions import width_of
from ..head.logprobs import Head, linear_logprobs
from ..model.model import LoadedModel
from ..model.value_head import values_of
from ..packing.hidden import hidden_states
from .checks import HEAD_OUTPUTS, Pooling
from .settings import EngineSettings


def model_outputs(
    model: LoadedModel,
    datums: Sequence[Datum],
    sequences: Sequence[np.ndarray],
    *,
    names: Sequence[str],
    rows: Tensor | None,
    pooling: Pooling,
    settings: EngineSettings,
    known_gradient: Tensor | None = None,
) -> Outputs:
    """The outputs `names` of some datums, with their graph unless gradients are off.

    sequences       the tokens of each datum that the model reads: all, or those up to its last active position
    rows            where, among the tokens of all sequences, outputs per token are needed; None for everywhere. Other
                    positions never reach the head
    known_gradient  d loss / d logprobs at `rows`, for a loss that is linear in them
    """
    outputs = Outputs()
    if "embeddings" in names:
        hidden = hidden_states(model, sequences, settings.batching)
        outputs.embeddings = pool(hidden, [len(s) for s in sequences], pooling, pooled_from(datums))
        hidden = hidden if rows is None else hidden[rows.to(hidden.device)]
    else:
        hidden = hidden_states(model, sequences, settings.batching, rows)
    if "values" in names:
        outputs.values = values_of(model, hidden)
    if not any(name in HEAD_OUTPUTS for name in names):
        return outputs
    targets = target_tokens(datums, [len(s) for s in sequences])
    targets = targets if rows is None else targets[rows]
    head_outputs = linear_logprobs(
        *in_autocast_precision(hidden, model.head()),
        # Other ids outside the vocabulary were refused before; targets of weight 0 may be -100, for instance.
        targets.clamp(0, model.vocab_size - 1).to(hidden.device),
        entropy="entropy" in names,
        mean_logprobs="mean_logprobs" in names,
        known_gradient=known_gradient,
        head_strategy=settings.head_strategy,
        head_memory=settings.head_memory,
        head_backend=settings.head_backend,
    )
    model.head_choice = f"{head_outputs.strategy}, {head_outputs.backend}"
    for name in HEAD_OUTPUTS:
        setattr(outputs, name, getattr(head_outputs, name))
    return outputs


def in_autocast_precision(hidden: Tensor, head: Head) -> tuple[Tensor, Head]:
    """Hidden states and head in autocast's dtype where autocast is on, for the head's products; logprobs stay float32."""
    if not torch.is_autocast_enabled(hidden.device.type):
        return hidden, head
    dtype = torch.get_autocast_dtype(hidden.device.type)
    return hidden.to(dtype), replace(head, weight=head.weight.to(dtype))


def pool(hidden: Tensor, lengths: Sequence[int], pooling: Pooling, starts: Sequence[int] | None = None) -> Tensor:
    """[tokens, d] to [N, d] float32 (or float64): each sequence's mean over its tokens, its last token, or its first ("cls").

    starts: the first token of each sequence that counts; None: 0. It must lie within the sequence.
    """
    values = hidden if hidden.dtype == torch.float64 else hidden.float()
    counts = torch.tensor(lengths, device=hidden.device)
    skipped = torch.zeros_like(counts) if starts is None else torch.tensor(starts, device=hidden.device)
    if pooling == "last":
        return values[counts.cumsum(0) - 1]
    begins = counts.cumsum(0) - counts
    if pooling == "cls":
        return values[begins + skipped]
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), counts)
    if starts is not None:
        counted = torch.arange(len(owner), device=hidden.device) - begins[owner] >= skipped[owner]
        values, owner = values[counted], owner[counted]
    sums = values.new_zeros(len(lengths), values.shape[-1]).index_add(0, owner, values)
    return sums / (counts - skipped).unsqueeze(1)


def pooled_from(datums: Sequence[Datum]) -> list[int] | None:
    """Each datum's `pooled_from`, the first token that its pooled vector is of, else 0; None where no datum has one.

    Raises ShapeError where no token is left.
    """
    if not any("pooled_from" in datum.loss_fn_inputs for datum in datums):
        return None
    starts = [
        int(datum.loss_fn_inputs["pooled_from"].to_numpy().reshape(-1)[0])
        if "pooled_from" in datum.loss_fn_inputs
        else 0
        for datum in datums
    ]
    for datum, start in zip(datums, starts, strict=True):
        if not 0 <= start < datum.model_input.length:
            raise ShapeError(
                f"pooled_from is {start}, but the datum has {datum.model_input.length} tokens: none is left to pool"
            )
    return starts


def target_tokens(datums: Sequence[Datum], lengths: Sequence[int]) -> Tensor:
    """[T] or [T, K] int64: the targets of each datum's first `lengths` positions joined; narrower rows are padded with 0."""
    arrays = [datum.loss_fn_inputs["target_tokens"].to_numpy() for datum in datums]
    read = [targets[:length] for targets, length in zip(arrays, lengths, strict=True)]
    return torch.from_numpy(join(read, width_of(datums), np.int64))
