"""Checks that every datum must pass before a model reads it: lengths, token ids, finite numbers.

Builders check the datums they build, the trainer those it is given. Which keys a loss needs is checked by the loss.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import (
    AlignmentError,
    EmptyLossError,
    LengthMismatchError,
    LossbookError,
    MissingInput,
    NonFiniteLossInput,
    TokenRangeError,
    located,
)
from ..inputs import IGNORE_LABEL, is_of_another_length
from ..types import Datum, ModelInput, TensorData, as_datum, token_array
from .screening import is_of_candidates, suspects


def check_datums(
    datums: Iterable[Any],
    *,
    vocab_size: int | None = None,
    masked_targets: bool = False,
    weight_keys: Collection[str] = ("weights",),
) -> list[Datum]:
    """Check all datums as `check_datum` does and return them as lossbook's `Datum`.

    datums: lossbook's, another SDK's, or mappings; see `as_datum`. An error names the datum by its index from 0.
    Raises EmptyLossError when there are none.
    """
    values = list(datums)
    if not values:
        raise EmptyLossError("there are no datums: the list is empty")
    checked: list[Datum] = []
    for index, value in enumerate(values):
        try:
            datum = as_datum(value)
        except LossbookError as error:
            raise located(error, _name(index, len(values))) from None
        checked.append(datum)
    for index in suspects(checked, vocab_size):
        check_datum(
            checked[index],
            index,
            len(values),
            vocab_size=vocab_size,
            masked_targets=masked_targets,
            weight_keys=weight_keys,
        )
    return checked


def check_datum(
    datum: Datum,
    index: int | None = None,
    total: int | None = None,
    *,
    vocab_size: int | None = None,
    aligned: bool = False,
    masked_targets: bool = False,
    weight_keys: Collection[str] = ("weights",),
) -> None:
    """Raise unless a datum of N tokens is valid for any loss and model.

    shapes      every input has N rows ([N] or [N, K]) or is one number ([]). With `target_tokens` [N, K], a flat list
                of N*K numbers in row-major order is accepted. There is one weight per target, or one per position where
                the K targets are candidates with log-probabilities, such as `teacher_logprobs` [N, K]
    token ids   not negative, and below `vocab_size` where that is given. Targets of weight 0 may exceed it, unless
                `masked_targets=True`: that is for forward passes that look up every position
    numbers     weights are finite everywhere; other inputs where the weight is not 0, or everywhere without weights.
                A candidate's log-probability may be -inf: the candidate is absent
    aligned     True adds `check_aligned`
    weight_keys where the weights are, of several losses that are added up: a target counts where any of them is not 0

    Raises LengthMismatchError, DtypeError, TokenRangeError, NonFiniteLossInput, EmptyLossError (no tokens).
    """
    name = _name(index, total)
    tokens = _input_tokens(datum.model_input, name)
    inputs = datum.loss_fn_inputs
    _check_lengths(name, len(tokens), inputs)
    _check_range(name, "model_input", tokens, vocab_size, None)
    targets = inputs.get("target_tokens")
    if targets is not None:
        active = None if masked_targets else _counted(inputs, weight_keys)
        _check_range(name, "target_tokens", targets.to_numpy(), vocab_size, active)
    _check_finite(name, inputs, weight_keys)
    if aligned:
        check_aligned(datum, index, total)


def check_aligned(datum: Datum, index: int | None = None, total: int | None = None) -> None:
    """Raise AlignmentError unless each target of nonzero weight is the next input token.

    This holds for supervised data; sampled data and distillation may have other targets on purpose. The last target has
    no next input token and is not checked. Targets of shape [N, K] are refused.
    """
    name = _name(index, total)
    targets = datum.loss_fn_inputs.get("target_tokens")
    if targets is None:
        raise MissingInput(f"{name} carries no target_tokens, so their alignment cannot be checked")
    if len(targets.shape) != 1:
        raise AlignmentError(f"{name}: target_tokens of shape {targets.shape} are not one next token per position")
    tokens, wanted = _input_tokens(datum.model_input, name), targets.to_numpy()
    active = _active(datum.loss_fn_inputs)
    wrong = wanted[:-1] != tokens[1:]
    if active is not None:
        wrong &= active[:-1]
    if not wrong.any():
        return
    position = int(np.flatnonzero(wrong)[0])
    raise AlignmentError(
        f"{name}: target_tokens[{position}] is {wanted[position]}, but the next input token, "
        f"model_input[{position + 1}], is {tokens[position + 1]}.{_shift_hint(tokens, wanted)} "
        "datum_from_tokens_weights shifts by one for you"
    )


def count_labels(datum: Datum) -> int:
    """Number of positions with a nonzero weight; all N without weights."""
    active = _active(datum.loss_fn_inputs)
    return datum.model_input.length if active is None else int(active.reshape(len(active), -1).any(axis=1).sum())


def _shift_hint(tokens: np.ndarray, targets: np.ndarray) -> str:
    if np.array_equal(tokens, targets):
        return " The targets are the inputs themselves: they were not shifted, and a model would learn to copy."
    if len(tokens) > 2 and np.array_equal(tokens[2:], targets[:-2]):
        return " The targets are shifted by two: something else shifted them already."
    return ""


def _name(index: int | None, total: int | None) -> str:
    if index is None:
        return "the datum"
    return f"datum {index}" if total is None else f"datum {index} of {total}"


def _input_tokens(model_input: ModelInput, name: str) -> np.ndarray:
    try:
        chunks = [token_array(chunk.tokens) for chunk in model_input.chunks]
    except LossbookError as error:
        raise located(error, f"{name}: model_input") from None
    if not sum(len(chunk) for chunk in chunks):
        raise EmptyLossError(f"{name}: model_input has no tokens")
    return np.concatenate(chunks)


def _check_lengths(name: str, tokens: int, inputs: Mapping[str, TensorData]) -> None:
    targets = inputs.get("target_tokens")
    if targets is not None:
        _check_target_shape(name, tokens, targets)
    for key, value in inputs.items():
        shape = value.shape
        if key == "weights" and targets is not None:
            if not (value.shape == targets.shape[:1] and any(is_of_candidates(key, inputs) for key in inputs)):
                _check_weights_shape(name, value, targets)
        elif (
            key == "target_tokens"
            or is_of_another_length(key)
            or (shape and shape[0] == tokens)
            or (not shape and key != "weights")
        ):
            continue
        elif not shape:
            raise LengthMismatchError(f"{name}: weights is one number; it needs one for each of the {tokens} tokens")
        elif targets is None or len(targets.shape) == 1 or shape != [_size(targets)]:
            sizes = f"{key} has {_entries(shape)}, model_input has {tokens} tokens"
            raise LengthMismatchError(f"{name}: {sizes}.{_unshifted_hint(key, shape[0] - tokens)}")


def _check_target_shape(name: str, tokens: int, targets: TensorData) -> None:
    shape = targets.shape
    if len(shape) in (1, 2) and shape[0] == tokens and 0 not in shape:
        return
    sizes = f"{name}: target_tokens has {_entries(shape)}, model_input has {tokens} tokens"
    if len(shape) == 1 and shape[0] > tokens and shape[0] % tokens == 0:
        width = shape[0] // tokens
        raise LengthMismatchError(f"{sizes}. For {width} targets per position give them the shape [{tokens}, {width}]")
    raise LengthMismatchError(f"{sizes}.{_unshifted_hint('target_tokens', (shape or [0])[0] - tokens)}")


def _check_weights_shape(name: str, weights: TensorData, targets: TensorData) -> None:
    shape, wanted = weights.shape, targets.shape
    if shape == wanted or shape == [_size(targets)]:
        return
    if len(wanted) == 2 and _size(weights) in (1, wanted[0]):
        raise LengthMismatchError(
            f"{name}: weights has {_entries(shape)}, but target_tokens is [{wanted[0]}, {wanted[1]}]: weights needs "
            f"N*K = {_size(targets)} values in row-major order, one for each target of each position"
        )
    sizes = f"weights has {_entries(shape)}, target_tokens has {_entries(wanted)}"
    raise LengthMismatchError(f"{name}: {sizes}.{_unshifted_hint('weights', (shape or [1])[0] - wanted[0])}")


def _unshifted_hint(key: str, difference: int) -> str:
    if abs(difference) != 1:
        return ""
    builder = "datum_from_tokens_weights" if key in ("weights", "target_tokens") else "datums_from_trajectories"
    return f" Off by one: does {key} belong to the unshifted tokens? Use {builder}"


def _entries(shape: list[int]) -> str:
    if len(shape) > 1:
        return f"shape {shape}"
    count = shape[0] if shape else 1
    return f"{count} {'entry' if count == 1 else 'entries'}"


def _size(value: TensorData) -> int:
    return int(np.prod(value.shape, dtype=np.int64))


def _counted(inputs: Mapping[str, TensorData], keys: Collection[str]) -> np.ndarray | None:
    """As `_active`, true where the weight under any of these keys is not 0; None where one of them is not there."""
    masks = [_active(inputs, key) for key in keys]
    present = [mask for mask in masks if mask is not None]
    return np.any(present, axis=0) if len(present) == len(masks) else None


def _active(inputs: Mapping[str, TensorData], key: str = "weights") -> np.ndarray | None:
    """Bool in the shape of the targets (else of the weights), true where the weight is not 0; None without weights."""
    weights = inputs.get(key)
    if weights is None:
        return None
    active = weights.to_numpy() != 0
    targets = inputs.get("target_tokens")
    if targets is None:
        return active
    if active.size != _size(targets):  # one weight per position, for all its candidates
        return np.broadcast_to(active[:, None], targets.shape)
    return active.reshape(targets.shape)


def _check_range(name: str, key: str, ids: np.ndarray, vocab_size: int | None, active: np.ndarray | None) -> None:
    wrong = ids < 0
    if vocab_size is not None:
        beyond = ids >= vocab_size
        wrong = wrong | (beyond if active is None else beyond & active)
    if not wrong.any():
        return
    location, value = _first(wrong, ids)
    bounds = "not be negative" if vocab_size is None else f"lie in [0, {vocab_size}), the model's vocabulary"
    hint = ""
    if value == IGNORE_LABEL:
        hint = f". Other libraries ignore the label {IGNORE_LABEL}; here give the position any id and the weight 0"
    elif value >= 0:
        hint = ". Was the text encoded with another model's tokenizer?"
    raise TokenRangeError(f"{name}: {key} holds {value} {location}; token ids must {bounds}{hint}")


def _check_finite(name: str, inputs: Mapping[str, TensorData], weight_keys: Collection[str]) -> None:
    """Weights are finite, and other inputs where every weight is not 0: a loss checks those that it reads where its own is not."""
    for key, value in inputs.items():
        if value.dtype != "float32":
            continue
        array = value.to_numpy()
        wrong = ~np.isfinite(array)
        if is_of_candidates(key, inputs):
            wrong &= array != -np.inf
        if not wrong.any():
            continue
        hint = "weights must be finite everywhere"
        if key not in weight_keys:
            keys = () if is_of_another_length(key) else weight_keys
            masks = [mask for one in keys if (mask := _active(inputs, one)) is not None]
            active = np.all(masks, axis=0) if masks else None
            wrong = wrong if active is None else wrong & _active_for(active, array.shape)
            hint = "there are no weights to mask it"
            if active is not None:
                hint = "a weight of 0 would leave the position out"
        if wrong.any():
            location, number = _first(wrong, array)
            raise NonFiniteLossInput(f"{name}: {key} is {number} {location}; {hint}")


def _active_for(active: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Which entries of an input of this shape a loss could read."""
    if not shape:
        return np.asarray(active.any())
    if active.size == np.prod(shape, dtype=np.int64):
        return active.reshape(shape)
    rows = active.reshape(len(active), -1).any(axis=1)
    return rows.reshape(-1, *[1] * (len(shape) - 1))


def _first(wrong: np.ndarray, values: np.ndarray) -> tuple[str, Any]:
    """The location of the first true entry, in words, and the value there."""
    indices = np.unravel_index(int(np.argmax(wrong)), wrong.shape) if wrong.ndim else ()
    words = ["position", "column", "depth"]
    location = ", ".join(f"{word} {int(i)}" for word, i in zip(words, indices, strict=False))
    return f"at {location}" if location else "for the whole datum", values[indices].tolist()
