"""Datums with K targets per position: weighted targets, or a teacher's candidates with their log-probabilities.

Row t of N = L - 1 is about the prediction after tokens[t], that is, about tokens[t+1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import (
    InvalidLogprobError,
    LengthMismatchError,
    MissingInput,
    NonFiniteLossInput,
    ShapeError,
    UnknownInput,
)
from ..inputs import MAX_LOGPROB
from ..keywords import explained
from ..types import Datum, TensorData, token_array
from .tokens import float_array, shifted
from .truncation import Truncation

#: K probabilities add up to at most 1. A larger sum than this cannot come from rounding bfloat16 logits.
MAX_MASS = 1.02


@explained
def datum_from_topk(
    tokens: Any,
    topk_tokens: Any,
    topk_weights: Any,
    dedupe: bool = False,
    *,
    max_length: int | None = None,
    truncation: Truncation = "error",
) -> Datum:
    """A datum with K weighted targets at each position, as for distillation from a teacher's top K.

    tokens        [L] token ids, L = N + 1
    topk_tokens   [N, K] token ids; row t is about the prediction after tokens[t], that is, about tokens[t+1]
    topk_weights  [N, K] their weights, for instance the teacher's probabilities; a row of zeros is not learned
    dedupe        add up the weights of an id that a row holds twice; otherwise such a row is refused, since a top K
                  has no duplicates. Slots of weight 0 are padding and may repeat.
    returns       model_input tokens[:-1]; target_tokens and weights [N, K]

    Raises LengthMismatchError, ShapeError, UnknownInput (duplicates), TruncationError, NonFiniteLossInput.
    """
    ids = token_array(tokens)
    candidates = TensorData(topk_tokens, dtype="int64").to_numpy()
    weights = TensorData(topk_weights, dtype="float32").to_numpy()
    _check_topk_shapes(len(ids), candidates, weights, "topk_weights")
    duplicated = _duplicates(candidates, weights)
    if duplicated.any() and not dedupe:
        row, column = (int(i) for i in np.argwhere(duplicated)[0])
        raise UnknownInput(
            f"topk_tokens holds id {candidates[row, column]} more than once in row {row}, and both have weight. A top "
            "K has no duplicates; pass dedupe=True to add up their weights, or give all but one the weight 0"
        )
    if dedupe:
        weights = _weights_added_up(candidates, weights)
    rows = {"target_tokens": candidates, "weights": weights}
    return _from_rows(ids, rows, max_length=max_length, truncation=truncation)


@explained
def datum_from_teacher_topk(
    tokens: Any,
    topk_tokens: Any,
    topk_logprobs: Any,
    weights: Any = None,
    *,
    max_length: int | None = None,
    truncation: Truncation = "error",
) -> Datum:
    """A datum that compares a student with a teacher on the teacher's top K tokens, for losses over candidates.

    tokens         [L] token ids, L = N + 1
    topk_tokens    [N, K] token ids; row t is about the prediction after tokens[t]. Or N lists of at most K ids; None
                   stands for an empty list
    topk_logprobs  in the same layout, nats under the teacher over its full vocabulary; -inf or None: absent
    weights        [N] real numbers, one per row; None: 1 for rows with a candidate, 0 for others
    returns        model_input tokens[:-1]; target_tokens and teacher_logprobs [N, K], weights [N]. Absent candidates
                   are token 0 with logprob -inf

    Raises LengthMismatchError, ShapeError, UnknownInput (an id twice in a row), InvalidLogprobError (log-probabilities
    above 0, or probabilities that add up to more than 1), NonFiniteLossInput, MissingInput (a row with weight and no
    candidate), TruncationError, EmptyLossError.
    """
    ids = token_array(tokens)
    candidates, logprobs = _teacher_rows(topk_tokens, topk_logprobs)
    _check_topk_shapes(len(ids), candidates, logprobs, "topk_logprobs")
    present = logprobs != -np.inf
    candidates = np.where(present, candidates, 0)
    _check_teacher(candidates, logprobs, present)
    if weights is None:
        row_weights = present.any(axis=1).astype(np.float32)
    else:
        row_weights = float_array(weights, "weights", len(candidates), "rows of topk_tokens")
        _check_some_candidate(row_weights, present)
    return _from_rows(
        ids,
        {"target_tokens": candidates, "teacher_logprobs": logprobs, "weights": row_weights},
        max_length=max_length,
        truncation=truncation,
    )


def _from_rows(
    ids: np.ndarray, rows: dict[str, np.ndarray], *, max_length: int | None, truncation: Truncation
) -> Datum:
    """`shifted` for arrays about predictions. The first token is never a target, so a row of zeros is put first."""
    per_token = {key: np.concatenate([np.zeros_like(array[:1]), array]) for key, array in rows.items()}
    return shifted(ids, per_token, max_length=max_length, truncation=truncation)


def _teacher_rows(topk_tokens: Any, topk_logprobs: Any) -> tuple[np.ndarray, np.ndarray]:
    """[N, K] int64 and float32, from arrays or from lists whose rows may be shorter than K, or None."""
    if not _is_ragged(topk_tokens) and not _is_ragged(topk_logprobs):
        candidates = TensorData(topk_tokens, dtype="int64").to_numpy()
        return candidates, TensorData(topk_logprobs, dtype="float32").to_numpy().copy()
    id_rows, logprob_rows = (
        [[] if row is None else list(row) for row in rows] for rows in (list(topk_tokens), list(topk_logprobs))
    )
    _check_same_rows(id_rows, logprob_rows)
    shape = (len(id_rows), max((len(row) for row in id_rows), default=0))
    candidates, logprobs = np.zeros(shape, np.int64), np.full(shape, -np.inf, np.float32)
    for t, (ids, numbers) in enumerate(zip(id_rows, logprob_rows, strict=True)):
        present = [k for k in range(len(ids)) if ids[k] is not None and numbers[k] is not None]
        candidates[t, present] = TensorData([ids[k] for k in present], dtype="int64").to_numpy()
        logprobs[t, present] = TensorData([numbers[k] for k in present], dtype="float32").to_numpy()
    return candidates, logprobs


def _check_same_rows(id_rows: list[list[Any]], logprob_rows: list[list[Any]]) -> None:
    names = "topk_tokens and topk_logprobs"
    if len(id_rows) != len(logprob_rows):
        raise LengthMismatchError(
            f"{names} must have as many rows as each other, not {len(id_rows)} and {len(logprob_rows)}"
        )
    for t, (ids, numbers) in enumerate(zip(id_rows, logprob_rows, strict=True)):
        if len(ids) != len(numbers):
            raise LengthMismatchError(f"row {t} of {names} differs in length: {len(ids)} and {len(numbers)} entries")


def _is_ragged(rows: Any) -> bool:
    """Whether rows are lists of different lengths, or some row or number is None."""
    if not isinstance(rows, Sequence) or not all(row is None or isinstance(row, Sequence) for row in rows):
        return False
    return len({-1 if row is None else len(row) for row in rows}) > 1 or any(
        row is None or any(entry is None for entry in row) for row in rows
    )


def _check_teacher(candidates: np.ndarray, logprobs: np.ndarray, present: np.ndarray) -> None:
    """Raise unless the present candidates are different tokens with valid log-probabilities."""
    wrong = present & ~np.isfinite(logprobs)
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise NonFiniteLossInput(
            f"topk_logprobs is {logprobs[row, column]} in row {row}, column {column}; an absent candidate is -inf"
        )
    if (above := present & (logprobs > MAX_LOGPROB)).any():
        row, column = (int(i) for i in np.argwhere(above)[0])
        raise InvalidLogprobError(
            f"topk_logprobs is {logprobs[row, column]:g} in row {row}, column {column}: a log-probability is at most 0. "
            "Are these probabilities, or logits?"
        )
    mass = np.exp(logprobs.astype(np.float64)).sum(axis=1)
    if (mass > MAX_MASS).any():
        row = int(np.argmax(mass > MAX_MASS))
        raise InvalidLogprobError(
            f"the probabilities of row {row} of topk_logprobs add up to {mass[row]:.4g}, more than 1. Were they computed "
            "over the full vocabulary, in nats?"
        )
    duplicated = _duplicates(candidates, present)
    if duplicated.any():
        row, column = (int(i) for i in np.argwhere(duplicated)[0])
        raise UnknownInput(
            f"topk_tokens holds id {candidates[row, column]} more than once in row {row}. A top K has no duplicates: its "
            "probability would be counted twice. Give all but one the logprob -inf"
        )


def _check_some_candidate(weights: np.ndarray, present: np.ndarray) -> None:
    lonely = (weights != 0) & ~present.any(axis=1)
    if lonely.any():
        row = int(np.argmax(lonely))
        raise MissingInput(
            f"row {row} of topk_tokens has the weight {weights[row]:g} and no candidate: all its logprobs are -inf. Give it "
            "the weight 0, or leave the weights out (weights=None)"
        )


def _check_topk_shapes(tokens: int, candidates: np.ndarray, numbers: np.ndarray, name: str) -> None:
    if candidates.ndim != 2 or not candidates.size:
        raise ShapeError(f"topk_tokens must be [N, K], N = {tokens - 1}, not {list(candidates.shape)}")
    if numbers.shape != candidates.shape:
        raise LengthMismatchError(
            f"{name} has shape {list(numbers.shape)}, topk_tokens {list(candidates.shape)}: each candidate needs one number"
        )
    rows = len(candidates)
    if rows == tokens:
        raise LengthMismatchError(
            f"topk_tokens has {rows} rows for {tokens} tokens; each predicted token needs one ({tokens - 1}). If row t was "
            "computed after reading tokens[t], pass rows [:-1]; if it is about tokens[t] itself, pass rows [1:]"
        )
    if rows != tokens - 1:
        raise LengthMismatchError(f"topk_tokens has {rows} rows for {tokens} tokens; {tokens - 1} are needed")


def _duplicates(candidates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[N, K] bool, true where an id of nonzero weight occurs again in its row."""
    unused = -1 - np.arange(candidates.shape[1])  # negative and distinct, so padding equals nothing
    ids = np.where(weights != 0, candidates, unused)
    order = np.argsort(ids, axis=1, kind="stable")
    ordered = np.take_along_axis(ids, order, axis=1)
    repeats = np.zeros(ids.shape, dtype=bool)
    repeats[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    duplicated = np.empty_like(repeats)
    np.put_along_axis(duplicated, order, repeats, axis=1)
    return duplicated


def _weights_added_up(candidates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[N, K] float32: the sum of an id's weights in a row at its first slot, 0 at its other slots."""
    rows = np.repeat(np.arange(len(candidates)), candidates.shape[1])
    keys = np.stack([rows, candidates.reshape(-1)], axis=1)
    _, first, slot = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    sums = np.zeros(weights.size, dtype=np.float64)
    sums[first] = np.bincount(slot.reshape(-1), weights=weights.reshape(-1))
    return sums.reshape(weights.shape).astype(np.float32)
