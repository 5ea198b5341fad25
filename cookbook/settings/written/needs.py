"""What a setting takes, in words: for errors that say what is wrong with a value and how to mend it."""

from __future__ import annotations

import reprlib
from datetime import date, time
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ....datums.errors import did_you_mean

_KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}
_BOUNDS = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}


def needed(annotation: Any, metadata: tuple[Any, ...] | list[Any] = ()) -> str:
    """What a value must be: "a whole number of at least 1". metadata: the bounds of a pydantic field."""
    annotation = bare(annotation)
    limits = [
        f"{words} {limit:,}" if isinstance(limit, int) else f"{words} {limit:g}"
        for bound in metadata
        for name, words in _BOUNDS.items()
        if (limit := getattr(bound, name, None)) is not None and abs(limit) < 10**9
    ]
    return " ".join([_kind(annotation), " and ".join(limits)]).rstrip()


def bare(annotation: Any) -> Any:
    """A type without None and without what is annotated."""
    if get_origin(annotation) is Annotated:
        return bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        kinds = [bare(kind) for kind in get_args(annotation) if kind is not NoneType]
        return kinds[0] if len(kinds) == 1 else Union[tuple(kinds)]  # noqa: UP007
    return annotation


def choices(annotation: Any) -> tuple[Any, ...]:
    """The values between which a setting, or each entry of its list, chooses; none where it takes others too."""
    annotation = bare(annotation)
    if get_origin(annotation) in (tuple, list):
        return choices(get_args(annotation)[0])
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _kind(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return listed([str(one) for one in inner])
    if origin in (tuple, list):
        return f"a list, each of it {_kind(bare(inner[0]))}"
    if origin is dict:
        return f"names with a value each, {_kind(bare(inner[1]))}"
    if origin in (Union, UnionType):
        return listed([_KINDS.get(kind, str(kind)) for kind in inner if kind is not int])
    return _KINDS.get(annotation, "another value")


def listed(words: list[str], last: str = "or") -> str:
    """Words as a list in a sentence: "a, b or c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def refusal(name: str, value: Any, annotation: Any, metadata: tuple[Any, ...] | list[Any] = ()) -> str:
    """`name takes a whole number of at least 1, not 0`, with the likely mend. name: of the setting or the flag."""
    shown = {None: "nothing", True: "true", False: "false"}.get(value) if isinstance(value, bool | None) else None
    mend = ""
    if bare(annotation) in (str, Path) and isinstance(value, bool | int | float | date | time):
        mend = ": put it in quotes"
    elif isinstance(value, str) and choices(annotation):
        mend = did_you_mean(value, map(str, choices(annotation)))
        mend = f".{mend}" if mend else ""
    elif isinstance(value, date | time):
        shown = str(value)
    return f"{name} takes {needed(annotation, metadata)}, not {shown or reprlib.repr(value)}{mend}"


def mistake(error: ValidationError, fields: dict[str, FieldInfo], shown: Any = str) -> str:
    """The first mistake that pydantic has seen, in words. shown: how a field's name is written, as in a file or as a flag."""
    first = error.errors()[0]
    field = fields.get(str(first["loc"][0])) if first["loc"] else None
    cause = first.get("ctx", {}).get("error")
    if field is None:
        return str(cause or first["msg"])
    name = shown(str(first["loc"][0]))
    if cause is not None:
        return f"{name}: {cause}"
    if first["type"] == "missing":
        return f"{name} is needed: {field.description}"
    kind, inner = bare(field.annotation), first["loc"][1:]
    if inner and get_origin(kind) is dict:
        return refusal(f"{name}, {inner[0]!r}", first["input"], get_args(kind)[1])
    if inner and get_origin(kind) in (tuple, list):
        return refusal(name, first["input"], get_args(kind)[0])
    return refusal(name, first["input"], field.annotation, field.metadata)
