"""Datums from rows of known formats: conversations, completions, pairs, labelled completions, tokens."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np

from ..builders.pairs import build_pair
from ..builders.tokens import WeightReduction, datum_from_tokens_weights
from ..builders.truncation import Truncation
from ..chat.masks import datum_from_messages
from ..checks.json_text import strict_json
from ..choices import TrainOn
from ..errors import DataFileError, EmptyLossError, LabelError, RowLeftOut
from ..types import Datum
from .formats import format_of
from .keys import check_keys, row_weight
from .report import DataReport, build_datums
from .sources import Source, read_rows
from .text_rows import encode_completion
from .token_rows import datums_from_tokens


def datum_from_row(
    row: Mapping[str, Any],
    tokenizer: Any,
    *,
    train_on: TrainOn = "all_assistant",
    max_length: int | None = None,
    truncation: Truncation = "error",
    reduction: WeightReduction = "none",
) -> Datum:
    """The datum of a row. Its keys say which format it has.

    messages            [{"role", "content"}, ...] (and "tools"): as `datum_from_messages`
    prompt, completion  two texts, encoded as they are (control tokens count); the completion and the end-of-sequence
                        token are learned. Or two lists of messages; the answers in the completion are learned
    ..., label          true or false (or 1 or 0): whether the completion is good. It becomes the input `label`
    tokens, weights     as `datum_from_tokens_weights`; `PER_TOKEN` lists further inputs, one number per token
    input_ids, labels   as in transformers: unshifted, -100 for a token that is only read
    input_ids, a mask   `loss_mask`, `completion_mask` or `assistant_masks`, unshifted: 1 for a token that is learned

    Rows of tokens may have masks (`MASKS`) beside weights and labels: a token is learned where all say so. Tokens whose
    `attention_mask` is 0 are padding and left out. A row of any format may have a `weight`, which multiplies the weights of
    its tokens; with 0 it is left out (RowLeftOut). Keys that say what cannot be done are refused, by name; other keys
    have no effect and are counted in the data report.

    A preference pair makes two datums, a packed row one for each sequence; both are refused: use `datums_from_row`.
    Raises DataFileError, with the row's keys and the known formats; LabelError; AlignmentError (labels that are not the
    tokens); and the builders' errors.
    """
    datums = sequences_from_row(
        row, tokenizer, train_on=train_on, max_length=max_length, truncation=truncation, reduction=reduction
    )
    if len(datums) > 1:
        raise DataFileError(
            f"the row holds {len(datums)} packed sequences and makes as many datums; use datums_from_row"
        )
    return datums[0]


def datums_from_row(
    row: Mapping[str, Any],
    tokenizer: Any,
    *,
    train_on: TrainOn = "all_assistant",
    max_length: int | None = None,
    truncation: Truncation = "error",
    reduction: WeightReduction = "none",
) -> list[Datum]:
    """As `datum_from_row`, in a list. A preference pair makes two datums, chosen and rejected; a packed row one for each
    of its sequences, which `position_ids`, `seq_lengths` and others (see `documents`) tell apart.

    chosen, rejected    two texts after the text `prompt`; or two lists of messages after the messages `prompt`, whose
                        answers are learned; or, without a prompt, two conversations whose last answers are learned
    """
    kind = format_of(row)
    check_keys(row, kind)
    weight = row_weight(row, kind)
    if not weight:
        raise RowLeftOut("the row says that nothing of it is learned: its weight is 0")
    options: dict[str, Any] = {"max_length": max_length, "truncation": truncation, "reduction": reduction}
    if kind == "messages":
        datums = [_from_messages(row["messages"], row, tokenizer, train_on, options)]
    elif kind == "prompt and completion":
        datums = [_from_completion(row, "completion", tokenizer, options)]
    elif kind == "labelled completion":
        datums = [_from_labelled(row, tokenizer, options)]
    elif kind == "preference pair":
        sides = [partial(_from_completion, row, side, tokenizer, options) for side in ("chosen", "rejected")]
        datums = build_pair(*sides)
    else:
        datums = datums_from_tokens(row, kind, options)
    return datums if weight == 1 else [_weighed(datum, weight) for datum in datums]


def sequences_from_row(row: Mapping[str, Any], tokenizer: Any, **options: Any) -> list[Datum]:
    """As `datums_from_row`, for rows that are learned token by token: a preference pair is refused."""
    if format_of(row) == "preference pair":
        raise DataFileError(
            "the row is a preference pair and makes two datums; use datums_from_row, or `lossbook train dpo`"
        )
    return datums_from_row(row, tokenizer, **options)


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


def _weighed(datum: Datum, weight: float) -> Datum:
    """The datum with the weights of its tokens multiplied."""
    weights = datum.loss_fn_inputs["weights"].to_numpy() * np.float32(weight)
    return Datum(datum.model_input, {**datum.loss_fn_inputs, "weights": weights})


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
            tools = strict_json(value)
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
    read, learned = encode_completion(tokenizer, prompt, completion)
    return datum_from_tokens_weights([*read, *learned], [0.0] * len(read) + [1.0] * len(learned), **options)


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
