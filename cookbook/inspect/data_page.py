"""Rows of a data file as an HTML page: each token with its weight and, given a model, its loss and gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ...datums.errors import LossContractError
from ...datums.files.show import summary
from ...datums.types import Datum
from ...losses.loss.loss import LossLike
from ...trainer.clients.reference import ReferenceClient
from .token_losses import TokenLosses, token_losses
from .token_page import Number, TokenSequence, token_page, token_sequence, token_view_html

#: Inputs that come from an earlier state of the model. A file without them gets the model's own logprobs, which are the
#: right ones at a run's first step.
OWN_LOGPROBS = ("ref_logprobs", "sampling_logprobs")

#: A datum and its name: `train.jsonl, line 7, chosen`.
Named = tuple[str, Datum]


def weights_page(title: str, rows: Sequence[Named], tokenizer: Any) -> str:
    """The page of weights; it needs no model."""
    sequences = [token_sequence(datum, tokenizer, name, note=summary(datum)) for name, datum in rows]
    return token_page(title, token_view_html(sequences, shared=True))  # a weight means the same in every row


def loss_page(title: str, rows: Sequence[Named], loss: LossLike, model: ReferenceClient) -> str:
    """The page of token losses and gradients of these rows as one batch, under the model.

    Raises what `loss.check` raises, and LossContractError for a loss of embeddings, which has no numbers per token.
    """
    if "embeddings" in loss.outputs:
        raise LossContractError(f"{loss.name} reads embeddings of whole texts, so it has no numbers per token")
    datums, filled = with_own_logprobs([datum for _, datum in rows], loss, model)
    outputs = model.forward(datums, loss).result().loss_fn_outputs
    tokenizer = model.get_tokenizer()
    sequences = [
        _sequence(name, datum, result, tokenizer)
        for (name, _), datum, result in zip(rows, datums, token_losses(loss, datums, outputs), strict=True)
    ]
    return token_page(title, token_view_html(sequences, note=_about(loss, len(rows), filled)))


def with_own_logprobs(datums: Sequence[Datum], loss: LossLike, model: ReferenceClient) -> tuple[list[Datum], list[str]]:
    """Fill in the model's own logprobs for each of `OWN_LOGPROBS` that the loss requires and no datum has.

    Returns the datums and the names filled in. If only some datums lack an input, the loss's own check reports it.
    """
    parts = [part for _, part in loss.parts]
    required = {given.name: given.keys for part in parts for given in part.spec.inputs if given.required}
    missing = [
        name
        for name in OWN_LOGPROBS
        if name in required and not any(key in datum.loss_fn_inputs for datum in datums for key in required[name])
    ]
    if not missing:
        return list(datums), []
    outputs = model.forward(datums, "cross_entropy").result().loss_fn_outputs
    own = [torch.as_tensor(output["logprobs"].to_torch()) for output in outputs]
    return [
        Datum(datum.model_input, {**datum.loss_fn_inputs, **dict.fromkeys(missing, logprobs)})
        for datum, logprobs in zip(datums, own, strict=True)
    ], missing


def _sequence(name: str, datum: Datum, result: TokenLosses, tokenizer: Any) -> TokenSequence:
    columns = {key: _numbers(values.tolist()) for key, values in result.columns.items() if key != "weight"}
    losses = [f"{loss} {value:.4g} (of the {per})" for loss, (value, per) in result.losses.items() if per != "token"]
    return token_sequence(datum, tokenizer, name, columns, note="; ".join([summary(datum), *losses]))


def _numbers(values: Sequence[float]) -> list[Number]:
    return [None if math.isnan(value) else value for value in values]


def _about(loss: LossLike, rows: int, filled: Sequence[str]) -> str:
    about = f"{str(loss).partition('  #')[0]}, of {f'these {rows} sequences' if rows > 1 else 'this sequence'} as one batch."
    if filled:
        about += f" The data have no {' and no '.join(filled)}: the model's own are used, as at a run's first step."
    return about
