"""The format of a row, recognised by its keys."""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Mapping
from typing import Any

from ..errors import DataFileError, did_you_mean
from ..inputs import IGNORE_LABEL

#: Formats and the keys that each needs. A row has the first format whose keys it holds.
FORMATS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "preference pair": ("chosen", "rejected"),
    "labelled completion": ("prompt", "completion", "label"),
    "prompt and completion": ("prompt", "completion"),
    "tokens and weights": ("tokens", "weights"),
    "input ids and labels": ("input_ids", "labels"),
    "input ids and loss mask": ("input_ids", "loss_mask"),
    "input ids and completion mask": ("input_ids", "completion_mask"),
    "input ids and assistant masks": ("input_ids", "assistant_masks"),
}
#: Most keys of a row that an error names.
MOST_NAMED = 20
_EMBEDDING = "texts to embed are not learned token by token; `lossbook train embed` reads such rows"
#: Keys of formats that lossbook does not read, and how to convert them.
ELSEWHERE = {
    "conversations": "rename 'conversations' to 'messages', 'from' to 'role' and 'value' to 'content'",
    "conversation": "rename 'conversation' to 'messages'",
    "instruction": "rename 'instruction' (with 'input') to 'prompt' and 'output' to 'completion'",
    "input_ids": f"add 'labels': the token itself where it is learned, {IGNORE_LABEL} where it is only read; or 'loss_mask'",
    "answer": "rename 'answer' to 'completion' to learn it; `lossbook train rl` reads rows of prompt and answer",
    "response": "rename 'response' to 'completion'",
    "positive": _EMBEDDING,
    "query": _EMBEDDING,
    "anchor": _EMBEDDING,
    "text": "give 'prompt', which is only read, and 'completion', which is learned; the prompt may be empty",
}


def format_of(row: Mapping[str, Any]) -> str:
    """The row's format, a key of `FORMATS`. Raises DataFileError for a row of no known format.

    A key whose value is null counts as absent if the row then still has a format, because a Parquet file has every
    column in every row. A null 'label' counts as present: it is a missing label.
    """
    name = known_format(row)
    if name is not None:
        return name
    formats = "; ".join(" + ".join(keys) for keys in FORMATS.values())
    raise DataFileError(
        f"no format is known for a row with the keys {key_names(row)}. Known are {formats}.{_key_hint(row)}"
    )


def key_names(row: Mapping[str, Any], between: str = ", ") -> str:
    """The first `MOST_NAMED` keys of a row, long ones cut, and how many more there are; "none" without any."""
    names = [reprlib.repr(str(key))[1:-1] for key in itertools.islice(row, MOST_NAMED)]
    more = len(row) - len(names)
    return between.join([*names, f"{more} more"] if more else names) or "none"


def known_format(row: Mapping[str, Any]) -> str | None:
    """As `format_of`; None for a row of no known format."""
    for is_present in (lambda key: row.get(key) is not None or (key == "label" and key in row), row.__contains__):
        for name, keys in FORMATS.items():
            if all(map(is_present, keys)):
                return name
    return None


def _key_hint(row: Mapping[str, Any]) -> str:
    for key, advice in ELSEWHERE.items():
        if key in row:
            return f" Here: {advice}"
    known = sorted({key for keys in FORMATS.values() for key in keys})
    hints = ((key, did_you_mean(str(key), known)) for key in itertools.islice(row, MOST_NAMED) if key not in known)
    near = [f" Did you mean {key!r} to be{hint.removeprefix(' Did you mean')}" for key, hint in hints if hint]
    if near:
        return near[0]
    missing = [key for keys in FORMATS.values() if any(k in row for k in keys) for key in keys if key not in row]
    return f" {missing[0]!r} is missing" if missing else ""
