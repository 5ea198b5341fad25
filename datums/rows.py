"""Datums from rows of known formats: conversations, prompts with completions, tokens with weights, pairs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from .builders import WeightReduction, datum_from_tokens_weights
from .chat import TrainOn, datum_from_messages
from .errors import DataFileError, did_you_mean
from .files import read_jsonl
from .pairs import build_pair
from .report import DataReport, build_datums
from .truncation import Truncation
from .types import Datum, token_array

#: Each format by the keys that make it; the first whose keys a row holds is taken.
FORMATS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "preference pair": ("chosen", "rejected"),
    "prompt and completion": ("prompt", "completion"),
    "tokens and weights": ("tokens", "weights"),
}
#: Keys of formats made elsewhere, and what to do with them.
ELSEWHERE = {
    "conversations": "rename 'conversations' to 'messages', 'from' to 'role' and 'value' to 'content'",
    "conversation": "rename 'conversation' to 'messages'",
    "instruction": "rename 'instruction' (with 'input') to 'prompt' and 'output' to 'completion'",
    "input_ids": "rename 'input_ids' to 'tokens', and give 'weights' (0 where labels are -100) instead of 'labels'",
    "response": "rename 'response' to 'completion'",
    "text": "give 'prompt' and 'completion', so that it is known what to learn; for all of a text, an empty prompt",
}


def datum_from_row(
    row: Mapping[str, Any],
    tokenizer: Any,
    *,
    train_on: TrainOn = "all_assistant",
    max_length: int | None = None,
    truncation: Truncation = "error",
    reduction: WeightReduction = "none",
) -> Datum:
    """The datum of a row; its format is known by its keys.

    messages            [{"role", "content"}, ...] (and "tools"): as `datum_from_messages`
    prompt, completion  two texts, as the model reads them (control tokens count), the completion learned together
                        with the end-of-sequence token; or two lists of messages, the answers in the completion learned
    tokens, weights     as `datum_from_tokens_weights`; the tokenizer is not used

    Raises DataFileError listing the keys found and the formats known, and what the builders raise. A row of a
    preference pair makes two datums: use `datums_from_row`.
    """
    if format_of(row) == "preference pair":
        raise DataFileError("the row is a preference pair and makes two datums; use datums_from_row")
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
    """As `datum_from_row`, in a list; a preference pair makes two datums, chosen and rejected.

    chosen, rejected    two texts after the text `prompt`; or two lists of messages, after the messages `prompt` if
                        there is one, which alone are not learned; without, the last answer of each is.
    """
    kind = format_of(row)
    how: dict[str, Any] = {"max_length": max_length, "truncation": truncation, "reduction": reduction}
    if kind == "messages":
        return [_from_messages(row["messages"], row, tokenizer, train_on, how)]
    if kind == "prompt and completion":
        return [_from_completion(row, "completion", tokenizer, how)]
    if kind == "tokens and weights":
        return [datum_from_tokens_weights(row["tokens"], row["weights"], **how)]
    sides = [partial(_from_completion, row, side, tokenizer, how) for side in ("chosen", "rejected")]
    return build_pair(*sides)


def datums_from_file(
    path: str | Path,
    tokenizer: Any,
    *,
    on_error: Literal["error", "drop"] = "error",
    train_on: TrainOn = "all_assistant",
    max_length: int | None = None,
    truncation: Truncation = "error",
    reduction: WeightReduction = "none",
) -> tuple[list[Datum], DataReport]:
    """All datums of a JSON Lines file and what became of its rows; see `read_jsonl`, `datum_from_row`, `build_datums`.

    `on_error="drop"` leaves out rows that cannot be built; a line that cannot be read raises all the same.
    """

    def make(row: Mapping[str, Any]) -> list[Datum]:
        return datums_from_row(
            row, tokenizer, train_on=train_on, max_length=max_length, truncation=truncation, reduction=reduction
        )

    return build_datums(read_jsonl(path), make, on_error=on_error)


def format_of(row: Mapping[str, Any]) -> str:
    """The row's format, a key of `FORMATS`. Raises DataFileError when there is none."""
    for name, keys in FORMATS.items():
        if all(key in row for key in keys):
            return name
    found = ", ".join(map(str, row)) or "none"
    known = "; ".join(" + ".join(keys) for keys in FORMATS.values())
    raise DataFileError(f"no format is known for a row with the keys {found}. Known are {known}.{_key_hint(row)}")


def _key_hint(row: Mapping[str, Any]) -> str:
    for key, advice in ELSEWHERE.items():
        if key in row:
            return f" Here: {advice}"
    known = sorted({key for keys in FORMATS.values() for key in keys})
    hints = ((key, did_you_mean(str(key), known)) for key in row if key not in known)
    near = [f" Did you mean {key!r} to be{hint.removeprefix(' Did you mean')}" for key, hint in hints if hint]
    if near:
        return near[0]
    missing = [key for keys in FORMATS.values() if any(k in row for k in keys) for key in keys if key not in row]
    return f" {missing[0]!r} is missing" if missing else ""


def _from_messages(
    messages: Any, row: Mapping[str, Any], tokenizer: Any, train_on: TrainOn | int, how: Mapping[str, Any]
) -> Datum:
    options = {"tools": row["tools"]} if row.get("tools") else None
    return datum_from_messages(messages, tokenizer, train_on=train_on, template_options=options, **how)


def _from_completion(row: Mapping[str, Any], side: str, tokenizer: Any, how: Mapping[str, Any]) -> Datum:
    prompt, completion = row.get("prompt"), row[side]
    if isinstance(completion, list) and prompt is None:
        return _from_messages(completion, row, tokenizer, "last_assistant", how)
    if isinstance(completion, list) and isinstance(prompt, list):
        return _from_messages([*prompt, *completion], row, tokenizer, len(prompt), how)
    if not isinstance(prompt, str) or not isinstance(completion, str):
        kinds = f"{type(prompt).__name__} and {type(completion).__name__}"
        raise DataFileError(f"'prompt' and {side!r} must be two texts or two lists of messages, not {kinds}")
    read = [*_begin(tokenizer), *_encode(tokenizer, prompt)]
    learned = _encode(tokenizer, completion)
    end = tokenizer.eos_token_id
    if end is not None and learned[-1:] != [end]:
        learned = [*learned, end]
    return datum_from_tokens_weights([*read, *learned], [0.0] * len(read) + [1.0] * len(learned), **how)


def _encode(tokenizer: Any, text: str) -> list[int]:
    return token_array(list(tokenizer(text, add_special_tokens=False)["input_ids"])).tolist()


def _begin(tokenizer: Any) -> list[int]:
    """The token that this tokenizer puts before every text, if it does."""
    begin = getattr(tokenizer, "bos_token_id", None)
    return [begin] if begin is not None and list(tokenizer("")["input_ids"])[:1] == [begin] else []
