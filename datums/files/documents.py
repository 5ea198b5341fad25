"""Rows that hold several sequences one behind the other: where each begins."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..builders.notes import note_heeded
from ..errors import DataFileError, LossbookError, located
from ..types import token_array
from .keys import ENDS, LENGTHS, NUMBERS


def documents(row: Mapping[str, Any], tokens: int, kept: slice, numbered: np.ndarray | None) -> list[slice]:
    """The sequences of a row of `tokens` tokens, as slices of the tokens that are kept.

    kept      the tokens that are not padding; whatever has one entry per token is cut to them
    numbered  [tokens] an attention mask, which may number the sequences from 1

    `position_ids` begin again at 0 with each sequence; `LENGTHS` have their lengths; `ENDS` where each ends, after a
    first 0; `NUMBERS` a number per token, the same within a sequence. Raises DataFileError for values that are none of
    this, and for keys that divide the row differently.
    """
    length = len(range(tokens)[kept])
    starts: dict[str, list[int]] = {}
    if numbered is not None and numbered.max() > 1:
        starts["attention_mask"] = _changes(numbered[kept], "attention_mask")
    for key in ("position_ids", *LENGTHS, *ENDS, *NUMBERS):
        if row.get(key) is None:
            continue
        values = _integers(row[key], key)
        if not len(values):  # a table has every column in every row
            continue
        if key == "position_ids":
            starts[key] = _restarts(_per_token(values, key, tokens)[kept])
        elif key in NUMBERS:
            starts[key] = _changes(_per_token(values, key, tokens)[kept], key)
        else:
            starts[key] = _sums(values, key, length)
    (first, own), *others = starts.items() or [("", [0])]
    for key, theirs in others:
        if theirs != own:
            raise DataFileError(f"{first!r} and {key!r} divide the row differently: at {own[1:]} and at {theirs[1:]}")
    if len(own) > 1:
        note_heeded(f"{first!r}, which divides packed rows")
    return [slice(start, end) for start, end in zip(own, [*own[1:], length], strict=True)]


def _integers(values: Any, key: str) -> np.ndarray:
    try:
        return token_array(values)
    except LossbookError as error:
        raise located(error, repr(key)) from None


def _per_token(values: np.ndarray, key: str, tokens: int) -> np.ndarray:
    if len(values) != tokens:
        raise DataFileError(f"{key!r} has {len(values)} entries for {tokens} tokens")
    return values


def _restarts(positions: np.ndarray) -> list[int]:
    """Where the positions begin again at 0; otherwise each must be one more than that before it."""
    follows = positions[1:] == positions[:-1] + 1
    if len(positions) and positions[0] != 0:
        raise DataFileError(f"position_ids begin with {positions[0]}, but lossbook counts positions from 0, one by one")
    wrong = np.flatnonzero(~follows & (positions[1:] != 0)) + 1
    if len(wrong):
        at = int(wrong[0])
        raise DataFileError(
            f"position_ids[{at}] is {positions[at]} after {positions[at - 1]}, but lossbook counts positions one by one, "
            "from 0 where a packed sequence begins"
        )
    return [0, *(np.flatnonzero(~follows) + 1).tolist()]


def _changes(numbers: np.ndarray, key: str) -> list[int]:
    """Where the number changes. Each number must stand in one stretch."""
    starts = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist()]
    seen: set[int] = set()
    for start in starts:
        if (number := int(numbers[start])) in seen:
            raise DataFileError(f"{key}[{start}] is {number} again after another number: its sequence is divided")
        seen.add(number)
    return starts


def _sums(values: np.ndarray, key: str, length: int) -> list[int]:
    """Where sequences of these lengths, or with these ends, begin."""
    ends = (values if key in ENDS else np.concatenate([[0], np.cumsum(values)])).tolist()
    if ends[:1] != [0] or ends[-1] != length or any(a >= b for a, b in itertools.pairwise(ends)):
        said = f"ends at {ends[-1] if ends else 0}" if key in ENDS else f"adds up to {ends[-1]}"
        raise DataFileError(
            f"{key!r} {said}, but the row has {length} tokens; it must divide them into sequences of at least one token"
        )
    return ends[:-1]
