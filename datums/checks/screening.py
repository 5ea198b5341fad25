"""A fast check of many datums at once that finds those which `check_datum` must then check one by one.

Checking one datum takes a dozen small array operations. Screening all of them takes a dozen large ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from ..inputs import is_of_another_length, key_kind
from ..types import Datum, TensorData


def suspects(datums: Sequence[Datum], vocab_size: int | None) -> list[int]:
    """Indices of the datums that `check_datum` might refuse. It accepts all others, and may accept these too."""
    lengths = np.array([datum.model_input.length for datum in datums], dtype=np.int64)
    tokens = joined_tokens(datums)
    if tokens is None:
        return list(range(len(datums)))
    suspected = (lengths == 0) | _any_of(_is_outside(tokens, vocab_size), lengths)
    inputs = [datum.loss_fn_inputs for datum in datums]
    suspected |= np.array([not _fits(own, n) for own, n in zip(inputs, lengths.tolist(), strict=True)], dtype=bool)
    for key in {key: None for own in inputs for key in own}:
        suspected |= _has_invalid_numbers(key, inputs, vocab_size)
    return np.flatnonzero(suspected).tolist()


def joined_tokens(datums: Sequence[Datum]) -> np.ndarray | None:
    """The input tokens of all datums, concatenated; None unless all are integers that int64 holds."""
    chunks = [chunk.tokens for datum in datums for chunk in datum.model_input.chunks]
    try:
        tokens = np.array(list(itertools.chain.from_iterable(chunks)))
    except (TypeError, ValueError):
        return None
    if not tokens.size:
        return tokens.astype(np.int64)
    return tokens if tokens.ndim == 1 and tokens.dtype == np.int64 else None


def _fits(inputs: Mapping[str, TensorData], tokens: int) -> bool:
    """Whether every input has one row per token or is one number, and the weights fit the targets."""
    targets, weights = inputs.get("target_tokens"), inputs.get("weights")
    for key, value in inputs.items():
        if value.shape and value.shape[0] != tokens and not is_of_another_length(key):
            return False
    if targets is not None and (len(targets.shape) not in (1, 2) or 0 in targets.shape):
        return False
    if weights is None:
        return True
    if targets is None or weights.shape == targets.shape:
        return bool(weights.shape)
    return weights.shape == targets.shape[:1] and any(is_of_candidates(key, inputs) for key in inputs)


def is_of_candidates(key: str, inputs: Mapping[str, TensorData]) -> bool:
    """Whether an input holds one log-probability for each of a position's K targets; -inf marks an absent one."""
    targets = inputs.get("target_tokens")
    if targets is None or len(targets.shape) != 2:
        return False
    return key_kind(key) == "logprob" and key in inputs and inputs[key].shape == targets.shape


def _has_invalid_numbers(key: str, inputs: Sequence[Mapping[str, TensorData]], vocab_size: int | None) -> np.ndarray:
    """[N] bool: datums whose `key` holds a number that is not finite, or a target outside the vocabulary."""
    arrays = [own[key].to_numpy().reshape(-1) if key in own else np.zeros(0, np.float32) for own in inputs]
    joined = np.concatenate(arrays)
    invalid = _is_outside(joined, vocab_size) if key == "target_tokens" else ~np.isfinite(joined)
    if not invalid.any():
        return np.zeros(len(inputs), dtype=bool)
    sizes = np.array([len(array) for array in arrays])
    candidates = np.array([is_of_candidates(key, own) for own in inputs])
    invalid &= ~(np.repeat(candidates, sizes) & (joined == -np.inf))
    return _any_of(invalid, sizes)


def _is_outside(ids: np.ndarray, vocab_size: int | None) -> np.ndarray:
    return ids < 0 if vocab_size is None else (ids < 0) | (ids >= vocab_size)


def _any_of(flags: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[N] bool: whether any flag is true in each of N consecutive blocks of these lengths."""
    return np.bincount(np.repeat(np.arange(len(lengths)), lengths)[flags], minlength=len(lengths)) > 0
