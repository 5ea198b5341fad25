"""Datums from tokens. Only this module shifts tokens by one: position t reads token t and learns token t + 1.

A builder takes whole sequences of L tokens and one entry per token; its datum has N = L - 1 positions. Lists, numpy
arrays and torch tensors are accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ..checks.validation import check_datum
from ..errors import EmptyLossError, LengthMismatchError, NonFiniteLossInput, ShapeError, TruncationError, WeightsError
from ..keywords import explained
from ..types import Datum, ModelInput, TensorData, as_model_input, token_array
from .truncation import Truncation, truncate

#: "none" keeps the weights; "mean" divides them by their sum, so that each datum has a total weight of 1.
WeightReduction = Literal["none", "mean"]


@explained
def datum_from_tokens_weights(
    tokens: Any,
    weights: Any,
    max_length: int | None = None,
    reduction: WeightReduction = "none",
    *,
    truncation: Truncation = "error",
) -> Datum:
    """A datum that learns token i with weight `weights[i]`.

    tokens      [L] token ids, L >= 2
    weights     [L] real numbers, 0 for tokens that are only read; the first has no effect, because nothing predicts
                the first token
    max_length  most tokens of a sequence, counted before the shift; `truncation` says what happens to longer ones
                ("error", "drop", "right", "left", "middle"; see `truncate`)
    reduction   "none", or "mean": the weights left after truncation are divided by their sum
    returns     model_input tokens[:-1]; target_tokens tokens[1:] and weights weights[1:], both [L-1]

    Raises LengthMismatchError when the two differ in length, TruncationError, EmptyLossError (fewer than 2 tokens, or
    a mean over weights that sum to 0), WeightsError (a mean over negative weights), NonFiniteLossInput.
    """
    ids = token_array(tokens)
    numbers = float_array(weights, "weights", len(ids))
    return shifted(ids, {"weights": numbers}, max_length=max_length, truncation=truncation, reduction=reduction)


@explained
def datum_from_model_input_weights(
    model_input: Any,
    weights: Any,
    max_length: int | None = None,
    reduction: WeightReduction = "none",
    *,
    truncation: Truncation = "error",
) -> Datum:
    """As `datum_from_tokens_weights`, from a ModelInput (ours or another SDK's) that holds all L tokens.

    Name and arguments are those of the Tinker and Fireworks cookbooks. Unlike there, a sequence longer than
    `max_length` is refused unless `truncation` says how to cut it.
    """
    given = as_model_input(model_input)
    datum = datum_from_tokens_weights(given.to_ints(), weights, max_length, reduction, truncation=truncation)
    if (routing := given.routing_matrices) is None:
        return datum
    if len(routing) != datum.model_input.length + 1:
        raise TruncationError(
            f"the sequence has {len(routing)} tokens, of which {datum.model_input.length + 1} are left: cut it before it is given "
            "routing_matrices"
        )
    return replace(datum, model_input=replace(datum.model_input, routing_matrices=routing[:-1]))


def shifted(
    tokens: np.ndarray,
    per_token: Mapping[str, np.ndarray],
    *,
    max_length: int | None = None,
    truncation: Truncation = "error",
    reduction: WeightReduction = "none",
) -> Datum:
    """Truncate, pair token t with the entries of token t + 1, and check the datum.

    tokens     [L] int64
    per_token  arrays [L] or [L, K], `weights` among them; without `target_tokens` the tokens are the targets
    returns    a datum of N = L - 1 positions (fewer after truncation), checked by `check_datum`
    """
    if len(tokens) < 2:
        raise EmptyLossError(f"{len(tokens)} token(s) leave nothing to predict: at least 2 are needed")
    if reduction not in ("none", "mean"):
        raise WeightsError(f"reduction must be 'none' or 'mean', not {reduction!r}")
    labels = (per_token["weights"] != 0).reshape(len(tokens), -1).any(axis=1)
    kept, is_label = truncate(labels, max_length, truncation)
    inputs = {"target_tokens": tokens, **per_token}
    inputs = {key: values[kept] for key, values in inputs.items()}
    inputs["weights"][~is_label] = 0
    inputs = {key: values[1:] for key, values in inputs.items()}
    if reduction == "mean":
        inputs["weights"] = _divided_by_sum(inputs["weights"])
    datum = Datum(ModelInput.from_ints(tokens[kept][:-1]), {k: TensorData.from_numpy(v) for k, v in inputs.items()})
    check_datum(datum)
    return datum


def float_array(values: Any, name: str, length: int, counted: str = "tokens") -> np.ndarray:
    """[length] float32 from any array-like, one entry per `counted`. Raises LengthMismatchError, ShapeError, DtypeError."""
    array = TensorData(values, dtype="float32").to_numpy()
    if array.ndim != 1:
        raise ShapeError(f"{name} must be one flat list of numbers, not an array of shape {list(array.shape)}")
    if len(array) != length:
        hint = ""
        if counted == "tokens" and len(array) == length - 1:
            hint = f". Off by one: give one entry per unshifted token; {name} is shifted with the tokens"
        raise LengthMismatchError(f"{name} has {len(array)} entries for {length} {counted}{hint}")
    return array


def _divided_by_sum(weights: np.ndarray) -> np.ndarray:
    if not np.isfinite(weights).all():
        position = int(np.argmin(np.isfinite(weights)))
        raise NonFiniteLossInput(f"the datum: weights is {weights[position]} at position {position}")
    if (weights < 0).any():
        position = int(np.argmax(weights < 0))
        raise WeightsError(
            f"reduction='mean' needs weights >= 0, but weights[{position}] is {weights[position]} (after the shift); "
            "use reduction='none'"
        )
    total = weights.sum(dtype=np.float64)
    if total == 0:
        raise EmptyLossError(
            "reduction='mean' divides by the sum of the weights, which is 0: there is nothing to learn"
        )
    return (weights / total).astype(np.float32)
