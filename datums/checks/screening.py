"""Many datums at one glance: which of them may be wrong, and so need to be looked at one by one.

Looking at one datum takes a dozen small array operations; looking at all together takes as many large ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from ..key_kinds import key_kind
from ..types import Datum, TensorData


def suspects(datums: Sequence[Datum], vocab_size: int | None) -> list[int]:
    """Indices of datums in which `check_datum` might find something; in no other would it. Not every suspect is wrong."""
    lengths = np.array([datum.model_input.length for datum in datums], dtype=np.int64)
    tokens = joined_tokens(datums)
    if tokens is None:
        return list(range(len(datums)))
    suspected = (lengths == 0) | _any_of(_is_outside(tokens, vocab_size), lengths)
    inputs = [datum.loss_fn_inputs for datum in datums]
    suspected |= np.array([not _fits(one, n) for one, n in zip(inputs, lengths.tolist(), strict=True)], dtype=bool)
    for key in {key: None for one in inputs for key in one}:
        suspected |= _has_odd_numbers(key, inputs, vocab_size)
    return np.flatnonzero(suspected).tolist()


def joined_tokens(datums: Sequence[Datum]) -> np.ndarray | None:
    """All datums' input tokens in one row; None where they are not all integers that int64 holds."""
    chunks = [chunk.tokens for datum in datums for chunk in datum.model_input.chunks]
    try:
        tokens = np.array(list(itertools.chain.from_iterable(chunks)))
    except (TypeError, ValueError):
        return None
    if not tokens.size:
        return tokens.astype(np.int64)
    return tokens if tokens.ndim == 1 and tokens.dtype == np.int64 else None


def _fits(inputs: Mapping[str, TensorData], tokens: int) -> bool:
    """Whether every input has as many rows as there are tokens, or is one number, and weights go with their targets."""
    targets, weights = inputs.get("target_tokens"), inputs.get("weights")
    for value in inputs.values():
        if value.shape and value.shape[0] != tokens:
            return False
    if targets is not None and (len(targets.shape) not in (1, 2) or 0 in targets.shape):
        return False
    if weights is None:
        return True
    if targets is None or weights.shape == targets.shape:
        return bool(weights.shape)
    return weights.shape == targets.shape[:1] and any(_is_of_candidates(key, inputs) for key in inputs)


def _is_of_candidates(key: str, inputs: Mapping[str, TensorData]) -> bool:
    """Whether it holds a log-probability of each of the K targets of a position, where -inf marks an absent one."""
    targets = inputs.get("target_tokens")
    if targets is None or len(targets.shape) != 2:
        return False
    return key_kind(key) == "logprob" and key in inputs and inputs[key].shape == targets.shape


def _has_odd_numbers(key: str, inputs: Sequence[Mapping[str, TensorData]], vocab_size: int | None) -> np.ndarray:
    """[N] bool: whose `key` holds a number that is not finite, or a target that is no token of the vocabulary."""
    arrays = [one[key].to_numpy().reshape(-1) if key in one else np.zeros(0, np.float32) for one in inputs]
    joined = np.concatenate(arrays)
    odd = _is_outside(joined, vocab_size) if key == "target_tokens" else ~np.isfinite(joined)
    if not odd.any():
        return np.zeros(len(inputs), dtype=bool)
    sizes = np.array([len(array) for array in arrays])
    if key_kind(key) == "logprob":
        candidates = np.array([_is_of_candidates(key, one) for one in inputs])
        odd &= ~(np.repeat(candidates, sizes) & (joined == -np.inf))
    return _any_of(odd, sizes)


def _is_outside(ids: np.ndarray, vocab_size: int | None) -> np.ndarray:
    return ids < 0 if vocab_size is None else (ids < 0) | (ids >= vocab_size)


def _any_of(flags: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[N] bool: whether any of each block's flags is true; blocks of `lengths`, one behind another."""
    return np.bincount(np.repeat(np.arange(len(lengths)), lengths)[flags], minlength=len(lengths)) > 0
