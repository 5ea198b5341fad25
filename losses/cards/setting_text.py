"""A setting's type and bounds, as a card shows them."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from ..spec.settings import Bounds


def type_text(annotation: Any) -> str:
    """A type as it is written in source: `float`, `"k1" | "k2"`, `int | None`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return " | ".join(f'"{choice}"' if isinstance(choice, str) else repr(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(type_text, arguments))
    if annotation is None or annotation is type(None):
        return "None"
    if annotation is Ellipsis:
        return "..."
    if origin is not None:
        return f"{type_text(origin)}[{', '.join(map(type_text, arguments))}]"
    return "any" if annotation is Any else getattr(annotation, "__name__", str(annotation))


def bounds_text(field: FieldInfo) -> str:
    """A setting's bounds, such as "in [0, 1]" or "above 0"; "" without any."""
    return ", ".join(dict.fromkeys(_bounds([*field.metadata, *_inner_metadata(field.annotation)])))


def _inner_metadata(annotation: Any) -> Iterable[Any]:
    """Bounds inside a union or a container, as in `Positive | None`."""
    for argument in typing.get_args(annotation):
        yield from getattr(argument, "__metadata__", ())
        yield from _inner_metadata(argument)


def _bounds(metadata: Iterable[Any]) -> Iterable[str]:
    low: str | None = None
    for one in metadata:
        if isinstance(one, Bounds):
            yield one.text
        elif isinstance(one, Ge | Gt):
            low = f"[{one.ge:g}" if isinstance(one, Ge) else f"({one.gt:g}"
        elif isinstance(one, Le | Lt) and low is not None:
            yield f"in {low}, {f'{one.le:g}]' if isinstance(one, Le) else f'{one.lt:g})'}"
            low = None
        elif isinstance(one, Le | Lt):
            yield f"at most {one.le:g}" if isinstance(one, Le) else f"below {one.lt:g}"
    if low is not None:
        yield f"at least {low[1:]}" if low[0] == "[" else f"above {low[1:]}"
