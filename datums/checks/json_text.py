"""JSON without its traps: a key twice, NaN, numbers beyond a float's range, half a character."""

from __future__ import annotations

import json
import math
import re
from typing import Any

#: Half of a character beyond U+FFFF. An unpaired half is valid JSON, but tokenizers refuse it.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def strict_json(text: str) -> Any:
    """The value of a JSON text.

    Raises json.JSONDecodeError for text that is not JSON, and ValueError, with the reason, for NaN and infinity, numbers
    beyond a float's range, a key twice in one object, unpaired surrogates, and lists or objects nested too deeply.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("an unpaired surrogate (half a character, such as \\ud800) in a text") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} appears more than once in one object, so one value would be lost")
    return mapping


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; write null, or leave the value out")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text} is beyond the range of a float")
    return number
