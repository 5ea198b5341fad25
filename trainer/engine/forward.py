"""One forward pass of a micro-batch: from datums to the outputs that a loss reads, at the positions where it reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import ShapeError
from ...datums.types import Datum
from ...losses.batch.outputs import Outputs
from ...losses.batch.pack import join
from ...losses.batch.packed import blocks
from ...losses.batch.positions import width_of
from ...losses.spec.layers import DATUM_OUTPUTS, LAYER_EMBEDDINGS
from ...losses.spec.vocabulary import STUDENT
from ..head.logprobs import Head, HeadOutputs, in_autocast_precision, linear_logprobs
from ..head.sparse import splade_vectors
from ..head.whole import HeadDistributions
from ..model.model import LoadedModel
from ..model.value_head import projection_of, values_of
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
    forwards: int = 1,
    routes: Sequence[np.ndarray] | None = None,
    top_k: int = 0,
    layers: Sequence[int] = (),
) -> Outputs:
    """The outputs `names` of some datums, with their graph unless gradients are off.

    sequences       the tokens of each datum that the model reads: all, or those up to its last active position
    rows            where, among the tokens of all sequences, outputs per token are needed; None for everywhere. Other
                    positions never reach the head
    known_gradient  d loss / d logprobs at `rows`, for a loss that is linear in them
    forwards        run so many at least, as other ranks do; see `hidden_states`
    routes          to which experts each datum's tokens are sent, where that is not the model's choice; see `hidden_states`
    top_k           how many of the likeliest tokens, where `names` has these
    layers          of which layers embeddings, where `names` has these; see `packing/layers.py`
    """
    outputs = Outputs()
    lengths = [len(sequence) for sequence in sequences]
    beside: dict[str, Tensor] = {}  # goes to the device together with the tokens
    if wants_head := any(name in HEAD_OUTPUTS for name in names):
        targets = target_tokens(datums, lengths)
        # Other ids outside the vocabulary were refused before; targets of weight 0 may be -100, for instance.
        beside["targets"] = (targets if rows is None else targets[rows]).clamp(0, model.vocab_size - 1)
    pooled = pooled_tokens(lengths, pooling, pooled_from(datums)) if set(DATUM_OUTPUTS) & set(names) else None
    head = model.head() if wants_head or STUDENT in names else None
    sparse = _sparse_head(model, head) if pooled is not None and pooling == "splade" else None
    hidden, pooled_rows = _hidden_and_pooled(
        model, sequences, settings, rows, beside, pooled, sparse, forwards, routes, layers
    )
    outputs.embeddings, outputs.layer_embeddings = _by_layer(pooled_rows, layers, names)
    outputs.values = values_of(model, hidden) if "values" in names else None
    if "token_embeddings" in names:
        outputs.token_embeddings = hidden if hidden.dtype == torch.float64 else hidden.float()
    outputs.projection = projection_of(model, hidden) if "projection" in names else None
    if head is not None and STUDENT in names:
        outputs.vocab_logprobs = HeadDistributions(*in_autocast_precision(hidden, head))
    if head is not None and wants_head:
        of_head = _head_outputs(model, head, hidden, beside["targets"], names, settings, known_gradient, top_k)
        for name in HEAD_OUTPUTS:
            setattr(outputs, name, getattr(of_head, name))
    return outputs


def _sparse_head(model: LoadedModel, head: Head | None) -> Head:
    """The head of vectors over the vocabulary: that of the logprobs, where these are computed too."""
    return model.head(masked_lm=True) if head is None else head


def _head_outputs(
    model: LoadedModel,
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    names: Sequence[str],
    settings: EngineSettings,
    known_gradient: Tensor | None,
    top_k: int,
) -> HeadOutputs:
    """What the head makes of hidden states, as `linear_logprobs` gives it."""
    outputs = linear_logprobs(
        *in_autocast_precision(hidden, head),
        targets,
        entropy="entropy" in names,
        mean_logprobs="mean_logprobs" in names,
        known_gradient=known_gradient,
        topk=top_k,
        head_strategy=settings.head_strategy,
        head_memory=settings.head_memory,
        head_backend=settings.head_backend,
    )
    model.head_choice = f"{outputs.strategy}, {outputs.backend}"
    return outputs


def _hidden_and_pooled(
    model: LoadedModel,
    sequences: Sequence[np.ndarray],
    settings: EngineSettings,
    rows: Tensor | None,
    beside: dict[str, Tensor],
    pooled: dict[str, Tensor] | None,
    sparse: Head | None,
    forwards: int,
    routes: Sequence[np.ndarray] | None,
    layers: Sequence[int],
) -> tuple[Tensor, Tensor | None]:
    """Hidden states at `rows`, and one vector per sequence where `pooled` says of which tokens. beside: see `hidden_states`.

    sparse: the head of vectors over the vocabulary; None for those of hidden states. layers: the vectors of these layers stand
    behind the last one's, [N, (1 + L) d].
    """
    if pooled is None:
        return hidden_states(model, sequences, settings.batching, rows, beside, forwards, routes), None
    beside |= pooled | ({} if rows is None else {"rows": rows})
    hidden = hidden_states(
        model, sequences, settings.batching, beside=beside, forwards=forwards, routes=routes, layers=layers
    )
    if sparse is None:
        vectors = pool(hidden, {name: beside[name] for name in pooled})
    else:
        chosen = model.before_head(hidden[beside["chosen"]] if "chosen" in pooled else hidden)
        vectors = splade_vectors(*in_autocast_precision(chosen, sparse), pooled["counts"].tolist())
    hidden = hidden[:, : hidden.shape[1] // (1 + len(layers))]
    return hidden if rows is None else hidden[beside["rows"]], vectors


def _by_layer(rows: Tensor | None, layers: Sequence[int], names: Sequence[str]) -> tuple[Tensor | None, Tensor | None]:
    """`embeddings` and `layer_embeddings` of pooled rows [N, (1 + L) d], as far as they are among `names`."""
    if rows is None:
        return None, None
    vectors = rows.unflatten(1, (1 + len(layers), -1))
    return (
        vectors[:, 0] if "embeddings" in names else None,
        vectors[:, 1:] if LAYER_EMBEDDINGS in names else None,
    )


def pooled_tokens(lengths: Sequence[int], pooling: Pooling, starts: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Which tokens a sequence's vector is made of, on the CPU: its mean's, its last, or its first ("cls").

    starts: the first token of each sequence that counts; None: 0. It must lie within the sequence.

    Returns `chosen`, indices among the tokens of all sequences, absent for all of them; and for means and "splade"
    `owner`, the sequence of each chosen token, and `counts` [N].
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    begins = np.cumsum(sizes) - sizes
    skipped = np.zeros_like(sizes) if starts is None else np.asarray(starts, dtype=np.int64)
    if pooling in ("last", "cls"):
        return {"chosen": torch.from_numpy(begins + sizes - 1 if pooling == "last" else begins + skipped)}
    counts = sizes - skipped
    arrays = {"owner": np.repeat(np.arange(len(sizes)), counts), "counts": counts}
    if starts is not None:
        arrays["chosen"] = blocks(begins + skipped, counts)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def pool(hidden: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
    """[tokens, d] to [N, d] float32 (or float64): what `pooled_tokens` says, on the device."""
    values = hidden if hidden.dtype == torch.float64 else hidden.float()
    values = values[tokens["chosen"]] if "chosen" in tokens else values
    if "owner" not in tokens:
        return values
    counts = tokens["counts"]
    sums = values.new_zeros(len(counts), values.shape[-1]).index_add(0, tokens["owner"], values)
    return sums / counts.unsqueeze(1)


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
