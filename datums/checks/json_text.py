"""JSON without its traps: a key twice, NaN, numbers beyond a float's range, half a character, deep nesting.

The time is proportional to the text's length, whatever is in it.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections import Counter
from typing import Any

#: Most lists and objects inside one another, and most keys of one object. Code that walks a value recursively ends at
#: about 1,000, and a row's keys are compared with those that have a meaning.
MAX_NESTING, MAX_KEYS = 100, 10_000
#: Half of a character beyond U+FFFF. An unpaired half is valid JSON, but tokenizers refuse it.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_LONG_NUMBER = re.compile(r"(?<!\d)\d{300}")
_TOO_DEEP = f"lists or objects are nested too deeply: more than {MAX_NESTING} inside one another"


def strict_json(text: str, *, non_finite: bool = False) -> Any:
    """The value of a JSON text. non_finite: NaN and Infinity are read as floats, as Python writes them.

    Raises json.JSONDecodeError for text that is not JSON, and ValueError, with the reason, for NaN and infinity, numbers
    beyond a float's range, a key twice in one object, unpaired surrogates, more than `MAX_NESTING` lists or objects inside
    one another, and objects of more than `MAX_KEYS` keys.
    """
    hooks: dict[str, Any] = {} if non_finite else {"parse_constant": _refuse_constant, "parse_float": _finite}
    if _LONG_NUMBER.search(text):
        hooks["parse_int"] = _finite_integer
    try:
        value = json.loads(text, object_pairs_hook=unique, **hooks)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if text.count("[") + text.count("{") > MAX_NESTING and _is_deep(value):
        raise ValueError(_TOO_DEEP)
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("an unpaired surrogate (half a character, such as \\ud800) in a text") from None
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of an object as a dict. Raises ValueError for a key that is there twice, and for more than `MAX_KEYS`."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(
            f"the key {reprlib.repr(twice)} appears more than once in one object, so one value would be lost"
        )
    if len(mapping) > MAX_KEYS:
        raise ValueError(f"an object of {len(mapping)} keys; at most {MAX_KEYS} are read")
    return mapping


def _is_deep(value: Any) -> bool:
    """Whether more than `MAX_NESTING` lists and objects lie inside one another; looked at level by level."""
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; write null, or leave the value out")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {reprlib.repr(text)[1:-1]} is beyond the range of a float")
    return number


def _finite_integer(text: str) -> int:
    _finite(text)
    return int(text)
