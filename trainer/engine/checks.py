"""Checks of a call's datums and outputs against the model, before the first forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from ...datums.errors import MissingInput, ModelError, ShapeError, TokenRangeError, did_you_mean
from ...datums.types import Datum
from ...losses.batch.checks import locate
from ...losses.loss.bound import BoundLoss
from ...losses.spec.layers import LAYER_EMBEDDINGS
from ...losses.spec.top import TOP_OUTPUTS
from ...losses.spec.vocabulary import WIDE_OUTPUTS
from ..model.model import LoadedModel
from ..model.value_head import check_value_head
from ..packing.layers import repeated_parts
from ..routing.routers import check_routing, decoded_routes
from .settings import EngineSettings

#: How tokens become one vector: "splade" is over the vocabulary, from a decoder's logits or a masked-LM head's.
Pooling = Literal["mean", "last", "cls", "splade"]

#: Outputs that come from the head's logits.
HEAD_OUTPUTS = ("logprobs", "entropy", "logsumexp", "mean_logprobs", *TOP_OUTPUTS)
#: Outputs with one row per active position; embeddings have one per datum.
TOKEN_OUTPUTS = (*HEAD_OUTPUTS, "values", "projection", *WIDE_OUTPUTS)


def check_pooling(pooling: str) -> None:
    """Raise ModelError for an unknown pooling, with the likeliest right one."""
    if pooling not in get_args(Pooling):
        known = ", ".join(map(repr, get_args(Pooling)))
        raise ModelError(f"pooling is one of {known}, not {pooling!r}.{did_you_mean(str(pooling), get_args(Pooling))}")


def check_pooled(model: LoadedModel, pooling: str, names: Sequence[str], layers: Sequence[int]) -> None:
    """Raise ModelError for vectors that the model does not have: over the vocabulary, of an encoder that was loaded without its
    masked-LM head, or of layers, for which there is no head; and of layers that it does not have below its last one."""
    _check_layers(model, layers)
    if pooling == "splade" and LAYER_EMBEDDINGS in names:
        raise ModelError(
            "pooling 'splade' is of the last layer's logits, and the loss reads layer_embeddings: take pooling mean, last or cls"
        )
    if pooling == "splade" and "embeddings" in names and not model.has_head:
        raise ModelError(
            f"pooling 'splade' reads the logits of a language model, and {model.name} is an encoder, loaded without its masked-LM "
            "head: make the client with masked_lm_head=True, or take a decoder, or pooling mean, last or cls"
        )


def check_top_k(model: LoadedModel, top_k: int, names: Sequence[str]) -> None:
    """Raise ShapeError unless `top_k` is 1 to the size of the vocabulary, ModelError beside outputs that are not logprobs."""
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= model.vocab_size:
        raise ShapeError(f"top_k must be 1 to {model.vocab_size}, the size of {model.name}'s vocabulary, not {top_k!r}")
    if "logprobs" not in names:
        raise ModelError(f"top_k goes with a loss over logprobs, and this one reads {', '.join(names)}")


def check_own_top_k(model: LoadedModel, bound: BoundLoss) -> None:
    """Raise ShapeError where a loss reads more of the likeliest tokens than there are."""
    if bound.top_k > model.vocab_size:
        raise ShapeError(
            f"{bound.name} reads the {bound.top_k} likeliest tokens, but {model.name} has {model.vocab_size}: make top_k smaller"
        )


def _check_layers(model: LoadedModel, layers: Sequence[int]) -> None:
    if layers and max(layers) >= (depth := len(repeated_parts(model))):
        has = f"has the layers 0 to {depth - 1} below its last one" if depth else "repeats no layer"
        raise ModelError(
            f"the loss reads embeddings of layer {max(layers)}, but {model.name} {has}: change the setting layers"
        )


def check_ranks(model: LoadedModel, settings: EngineSettings) -> None:
    """Raise ModelError where several ranks would not run the same layers: each leaves some out at random."""
    for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if model.ranks.size > 1 and settings.dropout and (share := getattr(model.config, name, 0)):
            raise ModelError(
                f"{model.name} leaves layers out at random in training ({name}={share}), and {model.ranks.size} ranks would "
                "wait for each other in different ones: leave dropout=True out, or train it in one process"
            )


def checked_tokens(model: LoadedModel, datums: Sequence[Datum], names: Sequence[str]) -> list[np.ndarray]:
    """Each datum's input tokens [length] int64, once it is clear that the model can read them and has the outputs `names`.

    Raises ModelError for values without a value head, logprobs of an encoder and a datum that is too long; MissingInput for
    logprobs of a datum without targets; TokenRangeError for an input token outside the vocabulary.
    """
    _check_outputs(model, datums, names)
    check_routing(model, datums)
    longest, vocabulary = model.max_length, model.vocab_size  # read once: these properties are slow
    sequences = [np.asarray(datum.model_input.to_ints(), dtype=np.int64) for datum in datums]
    for i, sequence in enumerate(sequences):
        if longest is not None and len(sequence) > longest:
            raise ModelError(
                f"datum {i} of {len(datums)} has {len(sequence)} tokens, but {model.name} reads at most {longest}. "
                "Give the datum builder a max_length and a truncation policy"
            )
    tokens = np.concatenate([np.zeros(0, np.int64), *sequences])
    wrong = (tokens < 0) | (tokens >= vocabulary)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        i, position = locate(row, np.ones(len(tokens), dtype=bool), [len(sequence) for sequence in sequences])
        raise TokenRangeError(
            f"datum {i} of {len(datums)}: model_input has token {int(tokens[row])} at position {position}, but "
            f"{model.name} knows tokens 0 to {vocabulary - 1}. Was it made with another model's tokenizer?"
        )
    return sequences


def checked_routes(model: LoadedModel, datums: Sequence[Datum], settings: EngineSettings) -> list[np.ndarray] | None:
    """As `decoded_routes`. Raises ModelError where layers are compiled, which would keep the model's own choice."""
    routes = decoded_routes(model, datums)
    if routes is not None and settings.compile_layers:
        raise ModelError("routing_matrices cannot be followed by compiled layers: leave compile_layers=True out")
    return routes


def _check_outputs(model: LoadedModel, datums: Sequence[Datum], names: Sequence[str]) -> None:
    check_value_head(model, names)
    if not any(name in HEAD_OUTPUTS for name in names):
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
