"""One forward pass of a micro-batch: from datums to the outputs a loss reads, at the positions it reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import MissingInput, ModelError, TokenRangeError, did_you_mean
from ...datums.types import Datum
from ...losses.batch.checks import locate
from ...losses.batch.outputs import Outputs
from ...losses.batch.pack import join, width_of
from ..head.backends import Backend
from ..head.logprobs import Head, Strategy, linear_logprobs
from ..model.load import LoadedModel
from ..model.value_head import no_value_head, values_of
from ..packing.attention import fits_in_blocks, hidden_in_blocks
from ..packing.rows import pack_row

Batching = Literal["padded", "packed"]
Pooling = Literal["mean", "last", "cls"]

#: Outputs that come from the head's logits.
HEAD_OUTPUTS = ("logprobs", "entropy", "logsumexp", "mean_logprobs")
#: Outputs with a row for every position read; embeddings have one for every datum.
TOKEN_OUTPUTS = (*HEAD_OUTPUTS, "values")


@dataclass(frozen=True)
class HeadOptions:
    """How the head computes logprobs and their gradient; see `linear_logprobs`. None of it changes a number beyond rounding.

    strategy, backend: "auto" or one by name. memory_budget: bytes that it may hold for the backward; None for a device
    default.
    """

    strategy: Strategy = "auto"
    memory_budget: int | None = None
    backend: Backend = "auto"


def model_outputs(
    model: LoadedModel,
    datums: Sequence[Datum],
    *,
    names: Sequence[str],
    active: Tensor | None,
    batching: Batching,
    pooling: Pooling,
    head: HeadOptions = HeadOptions(),
    known_gradient: Tensor | None = None,
) -> Outputs:
    """The outputs `names` of some datums, with their graph unless gradients are off.

    active: [positions of all datums] bool, where outputs of single positions are needed; None for everywhere. Positions
    that are not active never reach the head. known_gradient: d loss / d logprobs of those that do, for a loss that is
    linear in them.
    """
    sequences = [tokens_of(datum) for datum in datums]
    rows = None if active is None or bool(active.all()) else active.nonzero().squeeze(1)
    outputs = Outputs(active=active)
    if "embeddings" in names:
        hidden = hidden_states(model, sequences, batching)
        outputs.embeddings = pool(hidden, [len(s) for s in sequences], pooling)
        hidden = hidden if rows is None else hidden[rows.to(hidden.device)]
    elif active is None or rows is None:
        hidden = hidden_states(model, sequences, batching)
    else:
        read, kept = as_far_as_read(sequences, active)
        hidden = hidden_states(model, read, batching, kept)
    if not any(name in TOKEN_OUTPUTS for name in names):
        return outputs
    if "values" in names:
        outputs.values = values_of(model, hidden)
    if reads_head(names):
        # Ids outside the vocabulary are refused before; what is left of them are slots of weight 0, such as -100.
        targets = target_tokens(datums).clamp(0, model.vocab_size - 1)
        targets = targets if rows is None else targets[rows]
        found = linear_logprobs(
            *in_autocast_precision(hidden, model.head()),
            targets.to(hidden.device),
            entropy="entropy" in names,
            mean_logprobs="mean_logprobs" in names,
            strategy=head.strategy,
            memory_budget=head.memory_budget,
            known_gradient=known_gradient,
            backend=head.backend,
        )
        model.head_choice = f"{found.strategy}, {found.backend}"
        for name in HEAD_OUTPUTS:
            setattr(outputs, name, getattr(found, name))
    return outputs


def in_autocast_precision(hidden: Tensor, head: Head) -> tuple[Tensor, Head]:
    """Where autocast is on, its precision for the head's products too; logprobs are float32 all the same."""
    if not torch.is_autocast_enabled(hidden.device.type):
        return hidden, head
    dtype = torch.get_autocast_dtype(hidden.device.type)
    return hidden.to(dtype), replace(head, weight=head.weight.to(dtype))


def tokens_of(datum: Datum) -> np.ndarray:
    """[length] int64: a datum's input tokens."""
    return np.asarray(datum.model_input.to_ints(), dtype=np.int64)


def lengths_read(lengths: Sequence[int] | np.ndarray, active: np.ndarray) -> np.ndarray:
    """For each sequence, how many of its tokens the outputs at `active` positions depend on; at least 1.

    No token of a decoder looks ahead, so what comes behind the last position that is read need not be computed.
    """
    starts = np.cumsum(lengths, dtype=np.int64) - np.asarray(lengths, dtype=np.int64)
    behind = np.where(active, np.arange(1, len(active) + 1), 0)
    last = np.maximum.reduceat(behind, starts) if len(active) else np.zeros(0, dtype=np.int64)
    return np.maximum(last - starts, 1)


def as_far_as_read(sequences: list[np.ndarray], active: Tensor) -> tuple[list[np.ndarray], Tensor]:
    """The sequences cut behind the last position that is read, and where the positions that are read lie in those."""
    flags = active.cpu().numpy()
    lengths = np.array([len(sequence) for sequence in sequences])
    read = lengths_read(lengths, flags)
    within = np.concatenate([np.arange(length) for length in lengths]) < np.repeat(read, lengths)
    kept = torch.from_numpy(np.flatnonzero(flags[within]))
    return [sequence[:length] for sequence, length in zip(sequences, read, strict=True)], kept


def reads_head(names: Sequence[str]) -> bool:
    """Whether any of these outputs is one of the softmax."""
    return any(name in HEAD_OUTPUTS for name in names)


def hidden_states(
    model: LoadedModel, sequences: Sequence[Sequence[int] | np.ndarray], batching: Batching, rows: Tensor | None = None
) -> Tensor:
    """[tokens of all sequences, d]: last hidden states, sequence after sequence, no padding; or those of `rows` alone.

    "padded": one row a sequence. A decoder needs no mask for padding on the right, since no token looks ahead; an
    encoder gets one. "packed": one row for all. Attention goes block by block, and a prefix that several sequences
    begin with is computed once; a decoder that cannot do that gets positions which restart at each sequence, which is
    what makes transformers keep attention within a sequence.
    """
    sequences = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    if batching == "packed" and model.kind == "decoder":
        if fits_in_blocks(model):
            # A dropped unit of a shared prefix would be dropped for all its sequences.
            row = pack_row(sequences, share=not model.module.training)
            places = torch.from_numpy(np.concatenate(row.places))
            return hidden_in_blocks(model, row)[(places if rows is None else places[rows]).to(model.device)]
        tokens = torch.from_numpy(np.concatenate(sequences)).unsqueeze(0).to(model.device)
        positions = torch.cat([torch.arange(len(s)) for s in sequences]).unsqueeze(0).to(model.device)
        hidden = model.backbone(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state[0]
    else:
        hidden = _hidden_of_padded(model, sequences)
    return hidden if rows is None else hidden[rows.to(hidden.device)]


def _hidden_of_padded(model: LoadedModel, sequences: Sequence[np.ndarray]) -> Tensor:
    """[tokens of all sequences, d], one row a sequence while the model runs."""
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


def check_pooling(pooling: str) -> None:
    """Raise ModelError for a pooling that is none, with the one that was likely meant."""
    if pooling not in get_args(Pooling):
        known = ", ".join(map(repr, get_args(Pooling)))
        raise ModelError(f"pooling is one of {known}, not {pooling!r}.{did_you_mean(str(pooling), get_args(Pooling))}")


def check_fits(model: LoadedModel, datums: Sequence[Datum], names: Sequence[str]) -> None:
    """Raise for outputs `names` that the model does not have, and for a datum that it cannot read, before any forward.

    ModelError: values without a value head, logprobs of an encoder, a datum that is too long. MissingInput: logprobs of a datum without targets.
    TokenRangeError: an input token outside the vocabulary.
    """
    _check_outputs(model, datums, names)
    longest, vocabulary = model.max_length, model.vocab_size  # properties that a config answers slowly
    lengths = [datum.model_input.length for datum in datums]
    for i, length in enumerate(lengths):
        if longest is not None and length > longest:
            raise ModelError(
                f"datum {i} of {len(datums)} has {length} tokens, but {model.name} reads at most {longest}. "
                "Give the datum builder a max_length and a truncation policy"
            )
    tokens = np.concatenate([np.zeros(0, np.int64), *map(tokens_of, datums)])
    wrong = (tokens < 0) | (tokens >= vocabulary)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        i, position = locate(row, np.ones(len(tokens), dtype=bool), lengths)
        raise TokenRangeError(
            f"datum {i} of {len(datums)}: model_input has token {int(tokens[row])} at position {position}, but "
            f"{model.name} knows tokens 0 to {vocabulary - 1}. Was it made with another model's tokenizer?"
        )
