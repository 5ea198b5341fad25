"""Reading the arguments of functions that compute advantages: rewards, group ids, lengths and masks; each error names the place."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ...datums.errors import DtypeError, LengthMismatchError, LossConfigError, NonFiniteLossInput, ShapeError

Rewards = Sequence[float] | np.ndarray | Tensor
Groups = Sequence[Hashable] | np.ndarray | Tensor

#: The square of a larger number, and a sum of such squares, may be infinite.
LARGEST = 1e150


def numbers(values: Any, what: str, one_per: str, *, dimensions: int = 1) -> np.ndarray:
    """As a float64 tensor with the given number of dimensions. what, one_per: words for messages, such as "rewards" and
    "one number per sample".
    """
    try:
        array = np.array(
            values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values, dtype=np.float64
        )
    except (TypeError, ValueError) as error:
        kind = ShapeError if "inhomogeneous" in str(error) else DtypeError
        raise kind(f"{what} must be numbers, {one_per}, not {values!r:.80}") from None
    if array.size == 0 and array.ndim < dimensions:
        array = array.reshape((0,) * dimensions)
    if array.ndim != dimensions:
        raise ShapeError(f"{what} must be {one_per}, got shape {list(array.shape)}")
    return array


def finite(values: np.ndarray, what: str) -> np.ndarray:
    """The same. what: "reward", for messages."""
    if (wrong := ~np.isfinite(values)).any():
        at = int(np.flatnonzero(wrong)[0])
        raise NonFiniteLossInput(f"{what} {at} of {len(values)} is {values[at]}")
    return values


def check_size(values: np.ndarray) -> None:
    """No finite reward is so large that the deviation of some would be infinite."""
    if (large := np.isfinite(values) & (np.abs(values) > LARGEST)).any():
        at = int(np.flatnonzero(large)[0])
        raise NonFiniteLossInput(
            f"reward {at} of {len(values)} is {values[at]}: beyond ±{LARGEST:g} deviations overflow"
        )


def positive_lengths(lengths: Rewards, who: str, counted: np.ndarray) -> np.ndarray:
    """[n] numbers of tokens, above 0 where `counted` [n] is true."""
    tokens = numbers(lengths, "lengths", "one number per sample")
    same_length(who, counted, tokens, "lengths")
    if (wrong := counted & ~(np.isfinite(tokens) & (tokens > 0))).any():
        at = int(np.flatnonzero(wrong)[0])
        raise LossConfigError(f"{who} weights by lengths, which must be above 0, but length {at} is {tokens[at]}")
    return tokens


def same_length(who: str, values: np.ndarray, others: np.ndarray, name: str) -> None:
    """Raise LengthMismatchError unless there is one of `others` per reward."""
    if len(values) != len(others):
        raise LengthMismatchError(
            f"{who}: there are {len(values)} rewards but {len(others)} {name}; give one per reward"
        )


def group_ids(groups: Groups | None, count: int) -> list[Hashable]:
    """One id per reward; without groups all are the same. Raises LengthMismatchError, and DtypeError for a value that
    cannot be an id.
    """
    if groups is None:
        return [0] * count
    ids = [_id(one) for one in (groups.tolist() if isinstance(groups, np.ndarray | Tensor) else list(groups))]
    if len(ids) != count:
        raise LengthMismatchError(f"there are {count} rewards but {len(ids)} group ids; give one id per reward")
    for i, one in enumerate(ids):
        if not isinstance(one, Hashable) or one != one:
            what = "nan, which equals nothing" if isinstance(one, Hashable) else f"{one!r:.40}, a {type(one).__name__}"
            raise DtypeError(f"group id {i} of {count} is {what}; an id is a number, a string or a tuple")
    return ids


def one_of(name: str, value: str, known: Sequence[str]) -> None:
    """Raise LossConfigError for a setting that is none of the known ones."""
    if value not in known:
        raise LossConfigError(f"{name}={value!r} is none of {', '.join(map(repr, known))}")


def check_share(name: str, value: float) -> None:
    """Raise LossConfigError for a number outside [0, 1]."""
    if not 0 <= value <= 1:
        raise LossConfigError(f"{name}={value!r} must lie in [0, 1]")


def check_number(name: str, value: float) -> None:
    """Raise LossConfigError for NaN and infinity."""
    if not np.isfinite(value):
        raise LossConfigError(f"{name}={value!r} must be a finite number")


def _id(value: Any) -> Any:
    """A tensor or an array of one number as that number: equal tensors are different keys of a dictionary."""
    return value.tolist() if isinstance(value, Tensor | np.ndarray | np.generic) and np.ndim(value) == 0 else value
