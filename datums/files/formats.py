"""Which format a row has: told by its keys, so that nobody has to say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import DataFileError, did_you_mean

#: Each format by the keys that make it; the first whose keys a row holds is taken.
FORMATS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "preference pair": ("chosen", "rejected"),
    "labelled completion": ("prompt", "completion", "label"),
    "prompt and completion": ("prompt", "completion"),
    "tokens and weights": ("tokens", "weights"),
    "input ids and labels": ("input_ids", "labels"),
}
_EMBEDDING = "these are texts to embed, not to learn; `lossbook train embed` takes such rows"
#: Keys of formats made elsewhere, and what to do with them.
ELSEWHERE = {
    "conversations": "rename 'conversations' to 'messages', 'from' to 'role' and 'value' to 'content'",
    "conversation": "rename 'conversation' to 'messages'",
    "instruction": "rename 'instruction' (with 'input') to 'prompt' and 'output' to 'completion'",
    "input_ids": "give 'labels' too: input_ids where a token is to be learned, -100 where it is only read",
    "answer": "rename 'answer' to 'completion' if it is to be learned; `lossbook train rl` takes rows of prompt and answer",
    "response": "rename 'response' to 'completion'",
    "positive": _EMBEDDING,
    "query": _EMBEDDING,
    "anchor": _EMBEDDING,
    "text": "give 'prompt' and 'completion', so that it is known what to learn; for all of a text, an empty prompt",
}


def format_of(row: Mapping[str, Any]) -> str:
    """The row's format, a key of `FORMATS`. Raises DataFileError when there is none.

    A key whose value is null is not there when another format fits without it: a Parquet file has every column in
    every row. Only 'label' is: a null there is a label that was forgotten.
    """
    known = known_format(row)
    if known is not None:
        return known
    found = ", ".join(map(str, row)) or "none"
    formats = "; ".join(" + ".join(keys) for keys in FORMATS.values())
    raise DataFileError(f"no format is known for a row with the keys {found}. Known are {formats}.{_key_hint(row)}")


def known_format(row: Mapping[str, Any]) -> str | None:
    """As `format_of`; None where there is none."""
    for is_there in (lambda key: row.get(key) is not None or (key == "label" and key in row), row.__contains__):
        for name, keys in FORMATS.items():
            if all(map(is_there, keys)):
                return name
    return None


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
