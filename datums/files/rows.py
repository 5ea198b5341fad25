"""Datums from rows of known formats: conversations, completions, pairs, labelled completions, tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np

from ..builders.pairs import build_pair
from ..builders.tokens import WeightReduction, datum_from_tokens_weights, float_array, shifted
from ..builders.truncation import Truncation
from ..chat.masks import TrainOn, datum_from_messages
from ..errors import (
    AlignmentError,
    DataFileError,
    EmptyLossError,
    LabelError,
    LengthMismatchError,
    LossbookError,
    located,
)
from ..inputs import IGNORE_LABEL
from ..types import Datum, token_array
from .formats import format_of
from .report import DataReport, build_datums
from .sources import Source, read_rows

#: Further inputs per token that a row of tokens and weights may have.
PER_TOKEN = ("advantages", "logprobs", "sampling_logprobs", "ref_logprobs", "old_values", "returns")


def datum_from_row(
    row: Mapping[str, Any],
    tokenizer: Any,
    *,
    train_on: TrainOn = "all_assistant",
    max_length: int | None = None,
    truncation: Truncation = "error",
    reduction: WeightReduction = "none",
) -> Datum:
    """The datum of a row. Its keys say which format it has; other keys are ignored.

    messages            [{"role", "content"}, ...] (and "tools"): as `datum_from_messages`
    prompt, completion  two texts, encoded as they are (control tokens count); the completion and the end-of-sequence
                        token are learned. Or two lists of messages; the answers in the completion are learned
    ..., label          true or false (or 1 or 0): whether the completion is good. It becomes the input `label`
    tokens, weights     as `datum_from_tokens_weights`; `PER_TOKEN` lists further inputs, one number per token
    input_ids, labels   as in transformers: unshifted, -100 for a token that is only read. Tokens whose `attention_mask`
                        is 0 are padding and left out

    A preference pair makes two datums and is refused: use `datums_from_row`. Raises DataFileError, with the row's keys
    and the known formats; LabelError; AlignmentError (labels that are not the tokens); and the builders' errors.
    """
    if format_of(row) == "preference pair":
        raise DataFileError(
            "the row is a preference pair and makes two datums; use datums_from_row, or `lossbook train dpo`"
        )
    (datum,) = datums_from_row(
        row, tokenizer, train_on=train_on, max_length=max_length, truncation=truncation, reduction=reduction
    )
    return datum


def datums_from_row(
    row: Mapping[str, Any],
    tokenizer: Any,
    *,
    train_on: TrainOn = "all_assistant",
    max_length: int | None = None,
    truncation: Truncation = "error",
    reduction: WeightReduction = "none",
) -> list[Datum]:
    """As `datum_from_row`, in a list. A preference pair makes two datums, chosen and rejected.

    chosen, rejected    two texts after the text `prompt`; or two lists of messages after the messages `prompt`, whose
                        answers are learned; or, without a prompt, two conversations whose last answers are learned
    """
    kind = format_of(row)
    options: dict[str, Any] = {"max_length": max_length, "truncation": truncation, "reduction": reduction}
    if kind == "messages":
        return [_from_messages(row["messages"], row, tokenizer, train_on, options)]
    if kind == "prompt and completion":
        return [_from_completion(row, "completion", tokenizer, options)]
    if kind == "labelled completion":
        return [_from_labelled(row, tokenizer, options)]
    if kind == "tokens and weights":
        return [_from_tokens(row, options)]
    if kind == "input ids and labels":
        return [_from_labels(row, options)]
    sides = [partial(_from_completion, row, side, tokenizer, options) for side in ("chosen", "rejected")]
    return build_pair(*sides)


def datums_from_file(
    source: Source,
    tokenizer: Any,
    *,
    limit: int | None = None,
    on_error: Literal["error", "drop"] = "error",
    train_on: TrainOn = "all_assistant",
    max_length: int | None = None,
    truncation: Truncation = "error",
    reduction: WeightReduction = "none",
) -> tuple[list[Datum], DataReport]:
    """All datums of a file or another source, and a report on its rows.

    `read_rows` describes the sources, `datum_from_row` and `datums_from_row` the formats, `build_datums` the report.
    limit: most rows to read. `on_error="drop"` leaves out rows that cannot be built; a line that cannot be read raises.
    """

    def make(row: Mapping[str, Any]) -> list[Datum]:
        return datums_from_row(
            row, tokenizer, train_on=train_on, max_length=max_length, truncation=truncation, reduction=reduction
        )

    return build_datums(read_rows(source, limit=limit), make, on_error=on_error)


def _from_messages(
    messages: Any, row: Mapping[str, Any], tokenizer: Any, train_on: TrainOn | int, options: Mapping[str, Any]
) -> Datum:
    tools = _tools(row.get("tools"))
    template_options = {"tools": tools} if tools else None
    return datum_from_messages(messages, tokenizer, train_on=train_on, template_options=template_options, **options)


def _tools(value: Any) -> list[Any] | None:
    """The tools' schemas, from a list or from its JSON, which a table's column needs to keep their form."""
    tools = value
    if isinstance(value, str) and value:
        try:
            tools = json.loads(value)
        except ValueError as error:
            raise DataFileError(f"'tools' is a text that is not JSON: {error}") from None
    if tools and not isinstance(tools, list):
        raise DataFileError(f"'tools' must be a list of schemas, or its JSON, not a {type(tools).__name__}")
    return tools or None


def _from_completion(row: Mapping[str, Any], side: str, tokenizer: Any, options: Mapping[str, Any]) -> Datum:
    prompt, completion = row.get("prompt"), row[side]
    if isinstance(completion, list) and prompt is None:
        return _from_messages(completion, row, tokenizer, "last_assistant", options)
    if isinstance(completion, list) and isinstance(prompt, list):
        return _from_messages([*prompt, *completion], row, tokenizer, len(prompt), options)
    if not isinstance(prompt, str) or not isinstance(completion, str):
        raise DataFileError(_kinds_message(prompt, completion, side))
    if not completion and side != "rejected":  # an empty answer may be the rejected one
        raise EmptyLossError(f"{side!r} is an empty text, so there is no answer to learn; leave such rows out")
    read = [*_begin(tokenizer), *_encode(tokenizer, prompt)]
    learned = _encode(tokenizer, _without_end(completion, tokenizer.eos_token))
    if tokenizer.eos_token_id is not None:
        learned = [*learned, tokenizer.eos_token_id]
    return datum_from_tokens_weights([*read, *learned], [0.0] * len(read) + [1.0] * len(learned), **options)


def _without_end(text: str, end: str | None) -> str:
    """A completion without ends of sequence at its end, and without spaces and line breaks behind them."""
    while end and (bare := text.rstrip()).endswith(end):
        text = bare.removesuffix(end)
    return text


def _kinds_message(prompt: Any, completion: Any, side: str) -> str:
    """The error message for a prompt and a completion that are neither two texts nor two lists of messages."""
    kinds = f"{type(prompt).__name__} and {type(completion).__name__}"
    hint = ""
    if isinstance(prompt, list) and isinstance(completion, str):
        hint = f". Write {side!r} as [{{'role': 'assistant', 'content': ...}}]"
    elif isinstance(prompt, str) and isinstance(completion, list):
        hint = ". Write 'prompt' as [{'role': 'user', 'content': ...}]"
    elif prompt is None and isinstance(completion, str):
        hint = ". Add 'prompt', the text before it"
    return f"'prompt' and {side!r} must be two texts or two lists of messages, not {kinds}{hint}"


def _from_labelled(row: Mapping[str, Any], tokenizer: Any, options: Mapping[str, Any]) -> Datum:
    label = row["label"]
    if not isinstance(label, bool | int | float) or label not in (0, 1):
        raise LabelError(
            f"'label' is {label!r}; with 'prompt' and 'completion' it must be true or false (1 or 0): whether the completion "
            "is good. Rename it if it means something else"
        )
    datum = _from_completion(row, "completion", tokenizer, options)
    return Datum(datum.model_input, {**datum.loss_fn_inputs, "label": np.int64(label)})


def _from_tokens(row: Mapping[str, Any], options: Mapping[str, Any]) -> Datum:
    tokens = _ids(row, "tokens")
    inputs = {"weights": row["weights"], **{key: row[key] for key in PER_TOKEN if row.get(key) is not None}}
    return shifted(tokens, {key: float_array(values, key, len(tokens)) for key, values in inputs.items()}, **options)


def _from_labels(row: Mapping[str, Any], options: Mapping[str, Any]) -> Datum:
    tokens, labels = _ids(row, "input_ids"), _ids(row, "labels")
    if len(tokens) != len(labels):
        raise LengthMismatchError(
            f"labels has {len(labels)} entries for {len(tokens)} input_ids; give one label per token"
        )
    if row.get("attention_mask") is not None:
        kept = _attended(_ids(row, "attention_mask"), labels)
        tokens, labels = tokens[kept], labels[kept]
    learned = labels != IGNORE_LABEL
    wrong = np.flatnonzero(learned & (labels != tokens))
    if len(wrong):
        index = int(wrong[0])
        early = learned[:-1]
        by_one = early.any() and (labels[:-1] == tokens[1:])[early].all()
        hint = " The labels are already shifted by one: give them unshifted, lossbook shifts them." if by_one else ""
        raise AlignmentError(
            f"labels[{index}] is {labels[index]}, but input_ids[{index}] is {tokens[index]}: a label must be its own token, "
            f"or {IGNORE_LABEL} where the token is only read.{hint}"
        )
    if not learned[1:].any():
        raise EmptyLossError(f"every label is {IGNORE_LABEL}, so there is nothing to learn; leave such rows out")
    return datum_from_tokens_weights(tokens, learned.astype(np.float32), **options)


def _attended(mask: np.ndarray, labels: np.ndarray) -> slice:
    """The sequence without the padding at its ends."""
    if len(mask) != len(labels):
        raise LengthMismatchError(f"attention_mask has {len(mask)} entries for {len(labels)} input_ids")
    attended = np.flatnonzero(mask)
    if not len(attended):
        raise EmptyLossError("attention_mask is 0 everywhere, so all of the row is padding")
    kept = slice(int(attended[0]), int(attended[-1]) + 1)
    if not mask[kept].all():
        index = int(attended[0] + np.argmin(mask[kept]))
        raise DataFileError(
            f"attention_mask is 0 at {index}, inside the sequence: only padding at its ends can be left out"
        )
    outside = np.flatnonzero((labels != IGNORE_LABEL) & (mask == 0))
    if len(outside):
        raise DataFileError(f"labels[{outside[0]}] is to be learned, but attention_mask marks it as padding")
    return kept


def _ids(row: Mapping[str, Any], key: str) -> np.ndarray:
    try:
        return token_array(row[key])
    except LossbookError as error:
        raise located(error, repr(key)) from None


def _encode(tokenizer: Any, text: str) -> list[int]:
    return token_array(list(tokenizer(text, add_special_tokens=False)["input_ids"])).tolist()


def _begin(tokenizer: Any) -> list[int]:
    """The token that this tokenizer puts before every text, if there is one."""
    begin = getattr(tokenizer, "bos_token_id", None)
    return [begin] if begin is not None and list(tokenizer("")["input_ids"])[:1] == [begin] else []
