"""Preference pairs: datums 2i and 2i + 1 are the chosen and the rejected answer of pair i."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np

from ..checks.validation import check_datum, count_labels
from ..errors import DatumDropped, EmptyLossError, LengthMismatchError, LossbookError, TruncationError, located
from ..keywords import explained
from ..types import Datum, TensorData, as_datum, token_array
from .tokens import float_array, shifted
from .truncation import Truncation, note_dropped


class _Tokens(NamedTuple):
    prompt: Any
    answer: Any


@explained
def datums_from_pairs(
    pairs: Sequence[Any],
    chosen: Sequence[Any] | None = None,
    rejected: Sequence[Any] | None = None,
    *,
    ref_logprobs: Sequence[tuple[Any, Any]] | None = None,
    max_length: int | None = None,
    truncation: Truncation = "error",
) -> list[Datum]:
    """[chosen 0, rejected 0, chosen 1, rejected 1, ...], the order that preference losses read.

    Either `pairs` alone, a sequence of (chosen, rejected) datums; or `datums_from_pairs(prompts, chosen, rejected)`,
    three sequences of P token lists, where answers get weight 1 and prompts weight 0.

    ref_logprobs  P times (chosen, rejected): nats under the reference model, per answer token or per position of the
                  datum (values on the prompt are ignored). Only for pairs whose datums have none.
    max_length    most tokens of prompt and answer, before the shift; only for token lists. `truncation="drop"` leaves
                  out the whole pair.
    returns       2P datums

    Raises EmptyLossError when an answer has no token to learn, LengthMismatchError, TruncationError; each names the
    pair and the side.
    """
    sides = _sides_of_pairs(pairs, chosen, rejected, max_length)
    datums: list[Datum] = []
    dropped: list[DatumDropped] = []
    for index, (pair, reference) in enumerate(zip(sides, _references(ref_logprobs, sides), strict=True)):
        both = [
            partial(_build_side, side, ref, max_length, truncation) for side, ref in zip(pair, reference, strict=True)
        ]
        try:
            datums.extend(build_pair(*both))
        except DatumDropped as error:
            dropped.append(error)
        except LossbookError as error:
            raise located(error, f"pair {index}") from None
    if not datums and not dropped:
        raise EmptyLossError("there are no pairs: the list is empty")
    note_dropped(dropped, everything=not datums)
    return datums


def build_pair(chosen: Callable[[], Datum], rejected: Callable[[], Datum]) -> list[Datum]:
    """[chosen, rejected], each built by its function. Errors name the side.

    When one is too long, the other is built too, so that the error's `labels` count those of the whole pair.
    """
    datums: list[Datum] = []
    too_long: list[TruncationError] = []
    for side, build in (("chosen", chosen), ("rejected", rejected)):
        try:
            datums.append(build())
        except TruncationError as error:
            too_long.append(cast(TruncationError, located(error, side)))
        except LossbookError as error:
            raise located(error, side) from None
    if too_long:
        too_long[0].labels = sum(error.labels for error in too_long) + sum(map(count_labels, datums))
        raise too_long[0]
    return datums


def _sides_of_pairs(
    pairs: Sequence[Any], chosen: Sequence[Any] | None, rejected: Sequence[Any] | None, max_length: int | None
) -> list[Sequence[Any]]:
    if chosen is None and rejected is None:
        if max_length is not None:
            raise LengthMismatchError("max_length is for token lists; these datums are already built")
        return list(pairs)
    if chosen is None or rejected is None:
        raise LengthMismatchError("give prompts, chosen and rejected, or only pairs of datums")
    if not len(pairs) == len(chosen) == len(rejected):
        counts = f"{len(pairs)} prompts, {len(chosen)} chosen and {len(rejected)} rejected answers"
        raise LengthMismatchError(f"{counts}: each pair needs one of each")
    return [(_Tokens(p, c), _Tokens(p, r)) for p, c, r in zip(pairs, chosen, rejected, strict=True)]


def _references(
    ref_logprobs: Sequence[Sequence[Any]] | None, sides: Sequence[Sequence[Any]]
) -> Sequence[Sequence[Any]]:
    references = [(None, None)] * len(sides) if ref_logprobs is None else ref_logprobs
    if len(references) != len(sides):
        raise LengthMismatchError(f"ref_logprobs has {len(references)} entries for {len(sides)} pairs")
    for index, (pair, reference) in enumerate(zip(sides, references, strict=True)):
        if len(pair) != 2 or len(reference) != 2:
            raise LengthMismatchError(f"pair {index} and its ref_logprobs must both be (chosen, rejected)")
    return references


def _build_side(side: Any, reference: Any, max_length: int | None, truncation: Truncation) -> Datum:
    if isinstance(side, _Tokens):
        return _from_tokens(side, reference, max_length, truncation)
    return _with_reference(as_datum(side), reference)


def _from_tokens(side: _Tokens, reference: Any, max_length: int | None, truncation: Truncation) -> Datum:
    prompt, answer = token_array(side.prompt), token_array(side.answer)
    if not len(prompt):
        raise EmptyLossError("the prompt has no tokens, so nothing predicts the answer's first token; begin with BOS")
    if not len(answer):
        raise EmptyLossError("the answer has no tokens")
    weights = np.concatenate([np.zeros(len(prompt)), np.ones(len(answer))]).astype(np.float32)
    per_token = {"weights": weights}
    if reference is not None:
        per_token["ref_logprobs"] = np.concatenate([[0], _per_position(reference, weights[1:] != 0)]).astype(np.float32)
    tokens = np.concatenate([prompt, answer])
    return shifted(tokens, per_token, max_length=max_length, truncation=truncation)


def _with_reference(datum: Datum, reference: Any) -> Datum:
    inputs = dict(datum.loss_fn_inputs)
    check_datum(datum)
    weights = inputs.get("weights")
    learned = np.ones(datum.model_input.length, dtype=bool)
    if weights is not None:
        learned = (weights.to_numpy() != 0).reshape(len(learned), -1).any(axis=1)
    if not learned.any():
        raise EmptyLossError("every weight is 0, so there is no answer to learn from")
    if reference is not None:
        if "ref_logprobs" in inputs:
            raise LengthMismatchError("the datum already carries ref_logprobs; do not pass others")
        inputs["ref_logprobs"] = TensorData.from_numpy(_per_position(reference, learned))
        datum = Datum(datum.model_input, inputs)
        check_datum(datum)
    return datum


def _per_position(reference: Any, learned: np.ndarray) -> np.ndarray:
    """[N] float32 from one number per position, or one per answer token (0 elsewhere)."""
    logprobs = TensorData(reference, dtype="float32").to_numpy()
    if logprobs.shape == learned.shape:
        return logprobs
    counted = f"answer tokens (of {len(learned)} positions)"
    spread = np.zeros(len(learned), dtype=np.float32)
    spread[learned] = float_array(reference, "ref_logprobs", int(learned.sum()), counted)
    return spread
