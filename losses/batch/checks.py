"""Checks of a loss's inputs. Each error names the loss, the key, the datum and the position."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import (
    AlignmentError,
    InvalidLogprobError,
    LabelError,
    LengthMismatchError,
    LossbookError,
    MissingInput,
    NonFiniteLossInput,
    ShapeError,
    UnknownInput,
    did_you_mean,
)
from ...datums.inputs import KEY_DTYPES, MAX_LOGPROB
from ...datums.types import Datum
from ..spec.settings import WEIGHTS_KEY, Settings
from ..spec.spec import Input, LossSpec

#: Keys that every datum may carry, whatever the loss reads.
COMMON_KEYS = ("target_tokens", WEIGHTS_KEY)
#: float32 takes the integer above it for this one.
LARGEST_FLOAT_ID = 1 << 24


def missing_input(datum: Datum, index: int, total: int, spec: LossSpec, wanted: Input) -> MissingInput:
    """The error for a required input that a datum does not carry."""
    aliases = "".join(f" (or {key!r})" for key in wanted.keys[1:])
    return MissingInput(
        f"{spec.name} reads {wanted.name!r}{aliases}, which datum {index} of {total} does not carry. "
        f"It carries: {_keys(datum)}.{_hint(wanted.name, datum)}"
    )


def missing_weights(datum: Datum, index: int, total: int, spec: LossSpec, settings: Settings) -> MissingInput:
    """The error for absent weights under a reduction that divides by them, or under a key that was named for them."""
    reduction, key = settings.reduction, settings.weights or WEIGHTS_KEY
    if key != WEIGHTS_KEY:
        return MissingInput(
            f"{spec.name} with weights={key!r} reads {key!r}, which datum {index} of {total} does not carry. It carries: "
            f"{_keys(datum)}.{_hint(key, datum)} A datum that it should not learn from carries zeros"
        )
    return MissingInput(
        f"{spec.name} with reduction {reduction!r} reads 'weights', which datum {index} of {total} does not carry. "
        f"It carries: {_keys(datum)}.{_hint('weights', datum)} Only under reduction 'sum' do missing weights mean ones; "
        "they are never guessed from the advantages"
    )


def check_keys(
    datums: Sequence[Datum], spec: LossSpec, settings: Settings, *, strict: bool, others: Collection[str] = ()
) -> None:
    """No key is a misspelt input (or, if strict, unread at all), and no key lacks that a setting needs.

    others: keys that other parts of a mixture read. Datums with the same keys are alike here: the first stands for all.
    """
    first: dict[tuple[str, ...], int] = {}
    for i, datum in enumerate(datums):
        first.setdefault(tuple(datum.loss_fn_inputs), i)
    common = (*COMMON_KEYS, *([settings.weights] if settings.weights not in (None, WEIGHTS_KEY) else []))
    known, given = {*spec.keys, *common}, settings.function
    for carried, i in first.items():
        missing = [one.name for one in spec.inputs if not any(key in carried for key in one.keys)]
        missing += [key for key in common if key not in carried]
        for key in carried:
            if key in known or key in others:
                continue
            # Keys with a meaning of their own are other losses' inputs, not misspellings.
            hint = "" if key in KEY_DTYPES else did_you_mean(key, missing, cutoff=0.8)
            if strict or hint:
                raise UnknownInput(
                    f"{spec.name} does not read {key!r}, which datum {i} of {len(datums)} carries.{hint} "
                    f"It reads: {', '.join(sorted(known))}"
                )
        for key, setting in spec.required_if.items():
            if given.get(setting) and key not in carried:
                raise MissingInput(
                    f"{spec.name} with {setting}={given[setting]} reads {key!r}, which datum {i} of {len(datums)} does "
                    f"not carry. Add it, or set {setting}=0"
                )


def check_weights_shape(array: np.ndarray, shape: tuple[int, ...], key: str, datum: int, total: int) -> None:
    """Weights, under their `key`, fill the targets' `shape` [N] or [N, K], flat in row-major order or in that very shape."""
    expected = int(np.prod(shape))
    if len(shape) == 2 and array.size == shape[0] != expected:
        raise LengthMismatchError(
            f"datum {datum} of {total}: {key} has {array.size} values but target_tokens is {list(shape)}: it needs "
            f"{expected} (N*K) values in row-major order"
        )
    check_length(array.size, shape, key, datum, total)
    if array.ndim > 1 and [n for n in array.shape if n != 1] != [n for n in shape if n != 1]:
        raise ShapeError(
            f"datum {datum} of {total}: {key} is {list(array.shape)} but target_tokens is {list(shape)}. Is it "
            "transposed?"
        )


def check_length(given: int, shape: tuple[int, ...], key: str, datum: int, total: int) -> None:
    """A key has as many entries as `shape` holds."""
    expected = int(np.prod(shape))
    if given == expected:
        return
    message = f"datum {datum} of {total}: {key} has {given} entries, but there are {expected} target positions"
    if abs(given - expected) == 1:
        message += (
            ". Off by one: was it made for the unshifted tokens? datum_from_tokens_weights shifts tokens and weights "
            "together"
        )
    raise LengthMismatchError(message)


def check_candidates(datum: Datum, index: int, total: int, spec: LossSpec, key: str) -> None:
    """A datum of a loss over candidates has [N, K] targets, and a number for each of them. key: of the weights."""
    targets, marks = (datum.loss_fn_inputs.get(key) for key in ("target_tokens", spec.candidates or ""))
    if targets is None or len(targets.shape) != 2:
        shape = "none" if targets is None else list(targets.shape)
        raise ShapeError(
            f"{spec.name} compares K candidate tokens per position, so it reads target_tokens [N, K], but those of datum "
            f"{index} of {total} are {shape}. datum_from_teacher_topk makes them from a teacher's top K"
        )
    weights = datum.loss_fn_inputs.get(key)
    if weights is not None and np.prod(weights.shape) == np.prod(targets.shape) != targets.shape[0]:
        raise LengthMismatchError(
            f"datum {index} of {total}: {key} is {list(weights.shape)}, one for each of {targets.shape[1]} candidates, but "
            f"{spec.name} takes one per position, {targets.shape[0]}: {spec.candidates} says how the candidates compare"
        )
    if marks is not None and list(marks.shape) != list(targets.shape):
        raise ShapeError(
            f"datum {index} of {total}: {spec.candidates} is {list(marks.shape)} but target_tokens is "
            f"{list(targets.shape)}: {spec.name} reads one number for each candidate"
        )


def check_some_present(absent: Tensor, spec: LossSpec, active: np.ndarray, lengths: Sequence[int] | np.ndarray) -> None:
    """Every position of non-zero weight has a candidate to compare with."""
    if not bool((nothing := absent.all(1)).any()):
        return
    datum, position = locate(int(nothing.nonzero()[0]), active, lengths)
    raise NonFiniteLossInput(
        f"{spec.name}: {spec.candidates} of datum {datum} is -inf for all {absent.shape[1]} candidates at position "
        f"{position}, where the weight is not 0. Give the position weight 0, or at least one candidate"
    )


def reads_one_target(spec: LossSpec) -> bool:
    """Whether one token per position is meant: in losses with one value per datum, pair or batch, and in losses of advantages
    that couple tokens, and in losses over whole distributions or the model's own likeliest tokens."""
    is_coupled = spec.couples != "token" and any(one.name == "advantages" for one in spec.inputs)
    is_top = spec.reads_top and spec.candidates is None
    return is_coupled or spec.per != "token" or spec.reads_vocabulary or is_top


def check_one_target(shapes: Sequence[tuple[int, ...]], spec: LossSpec) -> None:
    """Targets are [N], not [N, K], where one token per position is meant."""
    if not reads_one_target(spec):
        return
    if (datum := next((i for i, shape in enumerate(shapes) if len(shape) == 2), None)) is not None:
        why = f"couples the tokens of a {spec.couples}" if spec.per == "token" else f"has one value per {spec.per}"
        if spec.per == spec.couples == "token":
            why = f"reads {'whole distributions' if spec.reads_vocabulary else 'the likeliest tokens'}"
        raise ShapeError(
            f"{spec.name} {why}, so it reads one token per position, but target_tokens of datum {datum} of {len(shapes)} is "
            f"[N, K] with K = {shapes[datum][1]}. Give target_tokens, and what goes with them, one number per position"
        )


def has_one_column(wanted: Input, spec: LossSpec) -> bool:
    """Whether an input is one number per position where a position has one target, as all inputs of lossbook's losses are."""
    if spec.family != "own":
        return wanted.name != spec.candidates and wanted.per == "token"
    # a teacher's it may compare undeclared
    return wanted.name in KEY_DTYPES and wanted.name not in (spec.candidates, "teacher_logprobs")


def check_one_column(
    array: np.ndarray, shape: tuple[int, ...], datum: int, total: int, spec: LossSpec, wanted: Input
) -> None:
    """A standard input of [N] targets is [N]; as [N, 1] it would meet logprobs [N] as a table of all pairs of positions."""
    if len(shape) == 1 and array.ndim > 1 and has_one_column(wanted, spec):
        raise ShapeError(
            f"{spec.name}: {wanted.name} of datum {datum} of {total} is {list(array.shape)}, but its target_tokens are "
            f"{list(shape)}: give one number per position, {list(shape)}"
        )


def check_finite(array: np.ndarray, key: str, datum: int, total: int, spec: LossSpec) -> None:
    """Every entry of a key is finite, masked positions included."""
    wrong = ~np.isfinite(array)
    if not wrong.any():
        return
    where = tuple(int(i) for i in np.argwhere(wrong)[0])
    raise NonFiniteLossInput(
        f"{spec.name}: {key} of datum {datum} of {total} is {float(array[where])} at position {where[0]}"
        + (f", target {where[1]}" if len(where) > 1 else "")
    )


def check_one_per_datum(array: np.ndarray, datum: int, spec: LossSpec, wanted: Input) -> None:
    """An input of one number per datum holds one, finite, and 0 or 1 where it is a flag."""
    if array.size != 1:
        raise ShapeError(
            f"{spec.name} reads one {wanted.name!r} per datum, but datum {datum} carries {array.size} numbers"
        )
    value = float(array.sum())  # of the one there is
    if not np.isfinite(value):
        raise NonFiniteLossInput(f"{spec.name}: {wanted.name} of datum {datum} is {value}")
    if wanted.is_id and array.dtype.kind == "f":
        raise LabelError(f"{spec.name}: {wanted.name} of datum {datum} is {value:g}: give an integer")
    if wanted.is_flag and value not in (0, 1):
        hint = " Did you mean 0?" if value == -1 else ""
        raise LabelError(f"{spec.name}: {wanted.name} of datum {datum} is {value:g}: it must be 0 or 1.{hint}")


def check_vector(array: np.ndarray, datum: int, width: int, spec: LossSpec, wanted: Input) -> None:
    """An input of one vector per datum holds `width` finite numbers, as the first datum does."""
    what = f"{spec.name}: {wanted.name} of datum {datum}"
    if array.ndim != 1 or not array.size:
        raise ShapeError(f"{what} is {list(array.shape)}: give one vector, [D]")
    if array.size != width:
        raise ShapeError(f"{what} has {array.size} numbers, but that of the first datum has {width}")
    if (wrong := np.flatnonzero(~np.isfinite(array))).size:
        raise NonFiniteLossInput(f"{what} is {float(array[wrong[0]])} at index {wrong[0]}")


def are_ids(array: np.ndarray) -> bool:
    """Whether all are integers that their type tells apart from the next ones."""
    return array.dtype.kind != "f" or bool(((array == np.round(array)) & (np.abs(array) < LARGEST_FLOAT_ID)).all())


def check_pairs(active_per_datum: np.ndarray, total: int, one: str = "datum") -> None:
    """Datums come in pairs, and both sides of a pair have a position of non-zero weight, or neither. one: the word for a datum."""
    if total % 2:
        raise ShapeError(f"pairs are {one}s 2i (chosen) and 2i+1 (rejected), but there are {total} {one}s")
    active = (active_per_datum > 0).reshape(-1, 2)
    lone = np.flatnonzero(active[:, 0] != active[:, 1])
    if len(lone):
        i = int(lone[0]) * 2 + int(active[lone[0], 0])
        raise AlignmentError(
            f"{one} {i} of {total} has no position of non-zero weight while its partner {i ^ 1} has: the pair cannot be "
            "compared. Was its response truncated away?"
        )


def check_values(
    values: Tensor,
    checked: Tensor,
    wanted: Input,
    spec: LossSpec,
    active: np.ndarray,
    lengths: Sequence[int] | np.ndarray,
) -> None:
    """Packed values [T] or [T, K] are finite where `checked`, and at most 0 for log-probabilities."""
    if not values.is_floating_point():
        return
    is_logprob = wanted.kind == "logprob"
    wrong = ~torch.isfinite(values)
    if is_logprob:
        wrong |= values > MAX_LOGPROB
    wrong &= checked
    if not bool(wrong.any()):
        return
    where = wrong.nonzero()[0].tolist()
    value = float(values[tuple(where)])
    datum, position = locate(where[0], active, lengths)
    raise wrong_value(f"{spec.name}: {wanted.name} of datum {datum} is {value:g} at position {position}", value)


def wrong_value(what: str, value: float) -> LossbookError:
    """The error for a value that is not finite, or a log-probability above 0; `what` names the key and the place."""
    if np.isfinite(value):
        return InvalidLogprobError(
            f"{what}: a log-probability is at most 0. Are these probabilities, or negated log-probabilities?"
        )
    return NonFiniteLossInput(f"{what}, where the weight is not 0. Give the position weight 0, or correct the value")


def locate(row: int, active: np.ndarray, lengths: Sequence[int] | np.ndarray) -> tuple[int, int]:
    """Which (datum, position) the `row`-th active position is."""
    flat = int(np.flatnonzero(active)[row])
    ends = np.cumsum(lengths)
    datum = int(np.searchsorted(ends, flat, side="right"))
    return datum, flat - (int(ends[datum - 1]) if datum else 0)


def _keys(datum: Datum) -> str:
    return ", ".join(sorted(datum.loss_fn_inputs)) or "nothing"


def _hint(name: str, datum: Datum) -> str:
    hint = did_you_mean(name, datum.loss_fn_inputs)
    return f"{hint[:-1]} to be {name!r}?" if hint else ""
