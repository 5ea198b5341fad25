"""One forward pass of a micro-batch: from datums to the outputs a loss reads, at the positions it reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..datums.errors import MissingInput, ModelError, TokenRangeError
from ..datums.types import Datum
from ..losses.outputs import Outputs
from ..losses.packing import join, width_of
from .head import linear_logprobs
from .models import LoadedModel
from .value_head import no_value_head, values_of

Batching = Literal["padded", "packed"]
Pooling = Literal["mean", "last"]

#: Outputs that come from the head's logits.
HEAD_OUTPUTS = ("logprobs", "entropy", "logsumexp", "mean_logprobs")
#: Outputs with a row for every position read; embeddings have one for every datum.
TOKEN_OUTPUTS = (*HEAD_OUTPUTS, "values")


def model_outputs(
    model: LoadedModel,
    datums: Sequence[Datum],
    *,
    names: Sequence[str],
    covered: Tensor | None,
    batching: Batching,
    pooling: Pooling,
) -> Outputs:
    """The outputs `names` of some datums, with their graph unless gradients are off.

    covered: [positions of all datums] bool, where outputs of single positions are needed; None for everywhere. Positions
    that are not covered never reach the head.
    """
    sequences = [datum.model_input.to_ints() for datum in datums]
    hidden = hidden_states(model, sequences, batching)
    outputs = Outputs(covered=covered)
    if "embeddings" in names:
        outputs.embeddings = pool(hidden, [len(s) for s in sequences], pooling)
    if not any(name in TOKEN_OUTPUTS for name in names):
        return outputs
    rows = None if covered is None else covered.nonzero().squeeze(1)
    if rows is not None:
        hidden = hidden[rows.to(hidden.device)]
    if "values" in names:
        outputs.values = values_of(model, hidden)
    if reads_head(names):
        # Ids outside the vocabulary are refused before; what is left of them are slots of weight 0, such as -100.
        targets = target_tokens(datums).clamp(0, model.vocab_size - 1)
        targets = targets if rows is None else targets[rows]
        asked = {name: name in names for name in ("entropy", "mean_logprobs")}
        found = linear_logprobs(hidden, model.head(), targets.to(hidden.device), **asked)
        for name in HEAD_OUTPUTS:
            setattr(outputs, name, getattr(found, name))
    return outputs


def reads_head(names: Sequence[str]) -> bool:
    """Whether any of these outputs is one of the softmax."""
    return any(name in HEAD_OUTPUTS for name in names)


def hidden_states(model: LoadedModel, sequences: Sequence[Sequence[int]], batching: Batching) -> Tensor:
    """[tokens of all sequences, d]: last hidden states, sequence after sequence, no padding.

    "padded": one row a sequence. A decoder needs no mask for padding on the right, since no token looks ahead; an
    encoder gets one. "packed": one row for all, positions restarting at each sequence, which is what makes transformers
    keep attention within a sequence.
    """
    if batching == "packed" and model.kind == "decoder":
        tokens = torch.tensor([[token for s in sequences for token in s]], device=model.device)
        positions = torch.cat([torch.arange(len(s)) for s in sequences]).unsqueeze(0).to(model.device)
        return model.backbone(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state[0]
    longest = max(len(s) for s in sequences)
    padded = np.zeros((len(sequences), longest), dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=bool)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = True
    tokens, kept = torch.from_numpy(padded).to(model.device), torch.from_numpy(mask).to(model.device)
    if model.kind == "encoder":
        hidden = model.backbone(input_ids=tokens, attention_mask=kept.long()).last_hidden_state
    else:
        hidden = model.backbone(input_ids=tokens, use_cache=False).last_hidden_state
    return hidden.reshape(-1, hidden.shape[-1]) if bool(mask.all()) else hidden[kept]


def pool(hidden: Tensor, lengths: Sequence[int], pooling: Pooling) -> Tensor:
    """[tokens, d] to [N, d] float32 (or float64): each sequence's mean over its tokens, or its last token."""
    values = hidden if hidden.dtype == torch.float64 else hidden.float()
    counts = torch.tensor(lengths, device=hidden.device)
    if pooling == "last":
        return values[counts.cumsum(0) - 1]
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), counts)
    sums = values.new_zeros(len(lengths), values.shape[-1]).index_add(0, owner, values)
    return sums / counts.unsqueeze(1)


def target_tokens(datums: Sequence[Datum]) -> Tensor:
    """[T] or [T, K] int64: all datums' targets joined; narrower rows are filled up with token 0."""
    return torch.from_numpy(
        join([d.loss_fn_inputs["target_tokens"].to_numpy() for d in datums], width_of(datums), np.int64)
    )


def _check_outputs(model: LoadedModel, datums: Sequence[Datum], names: Sequence[str]) -> None:
    if "values" in names and model.value_head is None:
        raise no_value_head(model)
    if not reads_head(names):
        return
    if model.kind != "decoder":
        raise ModelError(
            f"{model.name} is an encoder: it has embeddings, but no logprobs of next tokens. Use a loss over embeddings, "
            'such as "info_nce", or a decoder'
        )
    for i, datum in enumerate(datums):
        if "target_tokens" not in datum.loss_fn_inputs:
            raise MissingInput(
                f"datum {i} of {len(datums)} carries no target_tokens, and logprobs are those of target tokens. It "
                f"carries: {', '.join(datum.loss_fn_inputs) or 'nothing'}. datum_from_tokens_weights makes them"
            )


def check_fits(model: LoadedModel, datums: Sequence[Datum], names: Sequence[str]) -> None:
    """Raise for outputs `names` that the model does not have, and for a datum that it cannot read, before any forward.

    ModelError: values without a value head, logprobs of an encoder, a datum that is too long. MissingInput: logprobs of a datum without targets.
    TokenRangeError: an input token outside the vocabulary.
    """
    _check_outputs(model, datums, names)
    for i, datum in enumerate(datums):
        tokens = np.asarray(datum.model_input.to_ints(), dtype=np.int64)
        if model.max_length is not None and len(tokens) > model.max_length:
            raise ModelError(
                f"datum {i} of {len(datums)} has {len(tokens)} tokens, but {model.name} reads at most {model.max_length}. "
                "Give the datum builder a max_length and a truncation policy"
            )
        wrong = (tokens < 0) | (tokens >= model.vocab_size)
        if wrong.any():
            position = int(np.flatnonzero(wrong)[0])
            raise TokenRangeError(
                f"datum {i} of {len(datums)}: model_input has token {int(tokens[position])} at position {position}, but "
                f"{model.name} knows tokens 0 to {model.vocab_size - 1}. Was it made with another model's tokenizer?"
            )
