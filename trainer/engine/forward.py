"""One forward pass of a micro-batch: from datums to the outputs that a loss reads, at the positions where it reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...datums.types import Datum
from ...losses.batch.outputs import Outputs
from ...losses.batch.pack import join
from ...losses.batch.positions import width_of
from ..head.logprobs import Head, linear_logprobs
from ..model.model import LoadedModel
from ..model.value_head import values_of
from ..packing.attention import hidden_states
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
        outputs.embeddings = pool(hidden, [len(s) for s in sequences], pooling)
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


def pool(hidden: Tensor, lengths: Sequence[int], pooling: Pooling) -> Tensor:
    """[tokens, d] to [N, d] float32 (or float64): each sequence's mean over its tokens, its last token, or its first ("cls")."""
    values = hidden if hidden.dtype == torch.float64 else hidden.float()
    counts = torch.tensor(lengths, device=hidden.device)
    if pooling == "last":
        return values[counts.cumsum(0) - 1]
    if pooling == "cls":
        return values[counts.cumsum(0) - counts]
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), counts)
    sums = values.new_zeros(len(lengths), values.shape[-1]).index_add(0, owner, values)
    return sums / counts.unsqueeze(1)


def target_tokens(datums: Sequence[Datum], lengths: Sequence[int]) -> Tensor:
    """[T] or [T, K] int64: the targets of each datum's first `lengths` positions joined; narrower rows are padded with 0."""
    arrays = [datum.loss_fn_inputs["target_tokens"].to_numpy() for datum in datums]
    read = [targets[:length] for targets, length in zip(arrays, lengths, strict=True)]
    return torch.from_numpy(join(read, width_of(datums), np.int64))
