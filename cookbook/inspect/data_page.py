"""Rows of a data file as a page: each token with its weight and, under a model, with what a loss makes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ...datums.errors import LossContractError
from ...datums.files.show import summary
from ...datums.types import Datum
from ...losses.loss.loss import Loss
from ...losses.loss.mixture import Mixture
from ...trainer.clients.reference import ReferenceClient
from .token_losses import Examined, examine
from .token_page import Number, TokenSequence, token_page, token_sequence, token_view_html

#: Inputs that stand for an earlier state of the model in training. Where a file has none, they are the model's own, as
#: they are at a run's first step.
OWN_LOGPROBS = ("ref_logprobs", "sampling_logprobs")

#: A datum and its name: `train.jsonl, line 7, chosen`.
Named = tuple[str, Datum]


def weights_page(title: str, rows: Sequence[Named], tokenizer: Any) -> str:
    """The page of what is learned; no model is needed."""
    sequences = [token_sequence(datum, tokenizer, name, note=summary(datum)) for name, datum in rows]
    return token_page(title, token_view_html(sequences))


def loss_page(title: str, rows: Sequence[Named], loss: Loss | Mixture, model: ReferenceClient) -> str:
    """The page of what the loss makes of these rows, as one batch, under the model.

    Raises what `loss.check` raises, and LossContractError for a loss of embeddings, which has no numbers per token.
    """
    if "embeddings" in loss.outputs:
        raise LossContractError(f"{loss.name} reads embeddings of whole texts, so there is nothing to colour tokens by")
    datums, filled = with_own_logprobs([datum for _, datum in rows], loss, model)
    outputs = model.forward(datums, loss).result().loss_fn_outputs
    tokenizer = model.get_tokenizer()
    sequences = [
        _sequence(name, datum, found, tokenizer)
        for (name, _), datum, found in zip(rows, datums, examine(loss, datums, outputs), strict=True)
    ]
    return token_page(title, token_view_html(sequences, note=_about(loss, len(rows), filled)))


def with_own_logprobs(
    datums: Sequence[Datum], loss: Loss | Mixture, model: ReferenceClient
) -> tuple[list[Datum], list[str]]:
    """The datums with the model's own logprobs for each of `OWN_LOGPROBS` that the loss needs and some lack; and which.

    Where the data carry a key in some rows only, the loss's own check says so.
    """
    parts = [part for _, part in loss.parts] if isinstance(loss, Mixture) else [loss]
    wanted = {one.name: one.keys for part in parts for one in part.spec.inputs if one.required}
    lacking = [
        name
        for name in OWN_LOGPROBS
        if name in wanted and not any(key in datum.loss_fn_inputs for datum in datums for key in wanted[name])
    ]
    if not lacking:
        return list(datums), []
    outputs = model.forward(datums, "cross_entropy").result().loss_fn_outputs
    own = [torch.as_tensor(output["logprobs"].to_torch()) for output in outputs]
    return [
        Datum(datum.model_input, {**datum.loss_fn_inputs, **dict.fromkeys(lacking, logprobs)})
        for datum, logprobs in zip(datums, own, strict=True)
    ], lacking


def _sequence(name: str, datum: Datum, found: Examined, tokenizer: Any) -> TokenSequence:
    columns = {key: _numbers(values.tolist()) for key, values in found.columns.items() if key != "weight"}
    of = "; ".join(f"{one} {value:.4g} (of the {per})" for one, (value, per) in found.losses.items() if per != "token")
    return token_sequence(datum, tokenizer, name, columns, note="; ".join(filter(None, (summary(datum), of))))


def _numbers(values: Sequence[float]) -> list[Number]:
    return [None if math.isnan(value) else value for value in values]


def _about(loss: Loss | Mixture, rows: int, filled: Sequence[str]) -> str:
    said = f"{str(loss).partition('  #')[0]}, of {f'these {rows} sequences' if rows > 1 else 'this sequence'} as one batch."
    if filled:
        said += f" The data carry no {' and no '.join(filled)}: taken are this model's own, as at a run's first step."
    return said
