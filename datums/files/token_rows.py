"""Datums from rows of token ids, with weights, labels or masks that say which tokens are learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..builders.notes import note_heeded
from ..builders.tokens import float_array, shifted
from ..builders.truncation import note_dropped
from ..errors import (
    AlignmentError,
    DataFileError,
    DatumDropped,
    DtypeError,
    EmptyLossError,
    LengthMismatchError,
    LossbookError,
    located,
)
from ..inputs import IGNORE_LABEL
from ..types import Datum, TensorData, token_array
from .documents import documents
from .formats import FORMATS
from .keys import MASKS, PER_TOKEN


@dataclass(frozen=True)
class _TokenRow:
    """A row's tokens without padding: ids [L] and what is known of each, [L] each; `weights` among it.

    says_what: the labels and masks that say which tokens are learned.
    """

    tokens: np.ndarray
    per_token: dict[str, np.ndarray]
    says_what: list[str]
    sequences: list[slice]


def datums_from_tokens(row: Mapping[str, Any], kind: str, options: Mapping[str, Any]) -> list[Datum]:
    """One datum, or one for each sequence of a packed row. options: those of `shifted`.

    A token is learned where its weight is not 0, its label is not -100, and every mask is 1. A packed sequence of which
    nothing is learned is left out.
    """
    read = _read(row, kind)
    is_learned = read.per_token["weights"] != 0
    if read.says_what and not is_learned[1:].any():
        what = read.says_what[0]
        raise EmptyLossError(
            f"every label is {IGNORE_LABEL}, so there is nothing to learn; leave such rows out"
            if what == "labels"
            else f"{what!r} leaves nothing to learn; leave such rows out"
        )
    sequences = read.sequences
    if len(sequences) > 1:
        sequences = [one for one in sequences if is_learned[one][1:].any()]
        if len(sequences) < len(read.sequences):
            note_heeded("packed sequences without a learned token, which are left out")
    if not sequences:
        raise EmptyLossError("no sequence of the packed row has a token to learn; leave such rows out")
    return _built(read, sequences, options)


def _built(read: _TokenRow, sequences: list[slice], options: Mapping[str, Any]) -> list[Datum]:
    datums: list[Datum] = []
    dropped: list[DatumDropped] = []
    for number, one in enumerate(sequences):
        try:
            datums.append(shifted(read.tokens[one], {k: v[one] for k, v in read.per_token.items()}, **options))
        except DatumDropped as error:
            dropped.append(error)
        except LossbookError as error:
            raise (located(error, f"packed sequence {number}") if len(read.sequences) > 1 else error) from None
    note_dropped(dropped, everything=not datums)
    return datums


def _read(row: Mapping[str, Any], kind: str) -> _TokenRow:
    ids, *needed = FORMATS[kind]
    tokens = _ids(row, ids)
    given = [key for key in ("labels", "weights", *PER_TOKEN) if row.get(key) is not None or key in needed]
    labels = _ids(row, "labels") if "labels" in given else None
    if labels is not None and len(tokens) != len(labels):
        raise LengthMismatchError(f"labels has {len(labels)} entries for {len(tokens)} {ids}; give one label per token")
    per_token = {key: _numbers(row[key], key, len(tokens)) for key in given if key != "labels"}
    kept, numbered = slice(None), None
    if row.get("attention_mask") is not None:
        numbered = _ids(row, "attention_mask")
        kept = _attended(numbered, len(tokens), ids)
    if labels is not None:
        _check_labels(labels, tokens, ids, kept)
    weights, masks = _weights(row, per_token.get("weights"), labels, tokens, ids)
    per_token["weights"] = weights
    padding = np.ones(len(tokens), dtype=bool)
    padding[kept] = False
    outside = np.flatnonzero(padding & (weights != 0))
    if len(outside):
        what = "labels" if labels is not None else ids
        raise DataFileError(f"{what}[{outside[0]}] is to be learned, but attention_mask marks it as padding")
    said = [*(["labels"] if labels is not None else []), *masks]
    sequences = documents(row, len(tokens), kept, numbered)
    return _TokenRow(tokens[kept], {key: values[kept] for key, values in per_token.items()}, said, sequences)


def _weights(
    row: Mapping[str, Any], weights: np.ndarray | None, labels: np.ndarray | None, tokens: np.ndarray, ids: str
) -> tuple[np.ndarray, list[str]]:
    """[L] the weights, 0 where a label or a mask says that the token is not learned; and the names of the masks."""
    learned = np.ones(len(tokens), dtype=bool) if labels is None else labels != IGNORE_LABEL
    given = [key for key in MASKS if row.get(key) is not None]
    for key in given:
        mask = _mask(row[key], key, len(tokens), ids)
        _check_unshifted(mask, key, labels)
        note_heeded(repr(key))
        learned = learned & mask
    every = np.ones(len(tokens)) if weights is None else weights
    return np.where(learned, every, 0).astype(np.float32), given


def _check_labels(labels: np.ndarray, tokens: np.ndarray, ids: str, kept: slice) -> None:
    """Refuse labels, other than those of padding, that are not the tokens themselves."""
    labels, tokens = labels[kept], tokens[kept]
    learned = labels != IGNORE_LABEL
    wrong = np.flatnonzero(learned & (labels != tokens))
    if not len(wrong):
        return
    index = int(wrong[0])
    early = learned[:-1]
    by_one = early.any() and (labels[:-1] == tokens[1:])[early].all()
    hint = " The labels are already shifted by one: give them unshifted, lossbook shifts them." if by_one else ""
    place = index + (kept.start or 0)
    raise AlignmentError(
        f"labels[{place}] is {labels[index]}, but {ids}[{place}] is {tokens[index]}: a label must be its own token, "
        f"or {IGNORE_LABEL} where the token is only read.{hint}"
    )


def _mask(values: Any, key: str, tokens: int, ids: str) -> np.ndarray:
    """[L] bool from a mask of 0 and 1, or false and true."""
    try:
        mask = TensorData(values, dtype="float32").to_numpy()
    except LossbookError as error:
        raise located(error, repr(key)) from None
    if mask.shape != (tokens,):
        hint = f". It belongs to the unshifted {ids}: one entry per token" if mask.shape == (tokens - 1,) else ""
        raise LengthMismatchError(f"{key} has {mask.size} entries for {tokens} {ids}{hint}")
    wrong = np.flatnonzero((mask != 0) & (mask != 1))
    if len(wrong):
        raise DataFileError(
            f"{key}[{wrong[0]}] is {mask[wrong[0]]:g}; a mask holds 0 and 1. For other numbers give 'weights'"
        )
    return mask != 0


def _check_unshifted(mask: np.ndarray, key: str, labels: np.ndarray | None) -> None:
    """Refuse a mask that agrees with the labels only after a shift by one."""
    if labels is None:
        return
    learned = labels != IGNORE_LABEL
    says_something = not mask.all() and learned.any() and not learned[1:].all()
    if says_something and not np.array_equal(mask, learned) and np.array_equal(mask[:-1], learned[1:]):
        raise AlignmentError(
            f"{key} is shifted by one against labels: give it unshifted, 1 where the token itself is learned"
        )


def _attended(mask: np.ndarray, tokens: int, ids: str) -> slice:
    """The sequence without the padding at its ends."""
    if len(mask) != tokens:
        raise LengthMismatchError(f"attention_mask has {len(mask)} entries for {tokens} {ids}")
    if (mask < 0).any():
        raise DataFileError(f"attention_mask[{int(np.argmax(mask < 0))}] is negative; it holds 0 for padding, else 1")
    attended = np.flatnonzero(mask)
    if not len(attended):
        raise EmptyLossError("attention_mask is 0 everywhere, so all of the row is padding")
    kept = slice(int(attended[0]), int(attended[-1]) + 1)
    if len(attended) < tokens:
        note_heeded("'attention_mask'")
    if not mask[kept].all():
        index = int(attended[0] + np.argmin(mask[kept]))
        raise DataFileError(
            f"attention_mask is 0 at {index}, inside the sequence: only padding at its ends can be left out"
        )
    return kept


def _numbers(values: Any, key: str, tokens: int) -> np.ndarray:
    try:
        return float_array(values, key, tokens)
    except DtypeError as error:
        raise located(error, repr(key)) from None


def _ids(row: Mapping[str, Any], key: str) -> np.ndarray:
    try:
        return token_array(row[key])
    except LossbookError as error:
        raise located(error, repr(key)) from None
