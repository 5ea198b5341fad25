"""What drawn bytes stand for: values that an input or output of this name may hold. Byte 0 is the simplest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....datums.inputs import key_kind
from ..loss_under_test import LossUnderTest

#: From drawn bytes to values.
Meaning = Callable[[np.ndarray], np.ndarray]


def meaning_of(name: str, loss: LossUnderTest | None = None) -> Meaning:
    """A function from bytes to values that this input may hold; byte 0 is the simplest."""
    if loss is not None and name in loss.inputs:
        choices = np.array(loss.inputs[name], dtype=np.float32)
        return lambda drawn: choices[drawn % len(choices)]
    kind = key_kind(name)
    if kind == "logprob":
        return log_probabilities
    if kind == "prob":
        return lambda drawn: drawn / 256
    if name == "clip_low_threshold":
        return lambda drawn: 1 - drawn / 256
    if name == "clip_high_threshold":
        return lambda drawn: 1 + drawn / 64
    if kind == "flag":
        return grades if loss is not None and _graded(name, loss) else flags
    return either_sign


def _graded(name: str, loss: LossUnderTest) -> bool:
    """Whether every part that reads it compares the datums of a group, as ranking losses do."""
    readers = [part for part in loss.parts if any(one.name == name for one in part.spec.inputs)]
    return all(part.couples == "group" for part in readers)


def flags(drawn: np.ndarray) -> np.ndarray:
    return drawn % 2


def grades(drawn: np.ndarray) -> np.ndarray:
    """Graded labels, such as how relevant a document is."""
    return drawn % 4


def ids(drawn: np.ndarray) -> np.ndarray:
    return drawn % 5


def log_probabilities(drawn: np.ndarray) -> np.ndarray:
    return -(drawn / 32)


def of_one(logprobs: np.ndarray) -> np.ndarray:
    """Rows [N, K] as log-probabilities of K tokens of a vocabulary; one more token holds the rest."""
    rest = np.zeros((len(logprobs), 1))
    return logprobs - np.logaddexp.reduce(np.concatenate([logprobs, rest], axis=1), axis=1, keepdims=True)


def some_absent(logprobs: np.ndarray, drawn: bytes) -> np.ndarray:
    """float32; in about a fifth of the rows the last candidate is absent (-inf), but never the only one."""
    candidates = logprobs.astype(np.float32)
    if candidates.shape[1] > 1:
        candidates[np.frombuffer(drawn, dtype=np.uint8) % 5 == 4, -1] = -np.inf
    return candidates


def either_sign(drawn: np.ndarray) -> np.ndarray:
    return np.where(drawn % 2 == 1, (drawn + 1) // 2, -(drawn // 2)) / 32
