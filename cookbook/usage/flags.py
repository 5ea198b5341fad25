"""The flags of a command: from the fields of its settings, or from its function's parameters and docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import tyro
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..settings.groups import GROUPS
from ..settings.written.needs import bare, choices

#: In place of a default: the flag must be given.
NEEDED: Any = object()
#: The heading of the flags of commands that have no groups.
OTHERS = "Flags"
_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Flag:
    """One flag, or one word that a command takes by its place.

    annotation   the type of its value, with tyro's markers
    limits       a pydantic field's bounds
    default      NEEDED where it must be given
    placed       it has no `--name`: the word's place says what it is
    """

    name: str
    annotation: Any
    help: str
    default: Any = NEEDED
    group: str = OTHERS
    placed: bool = False
    metavar: str = ""
    aliases: tuple[str, ...] = ()
    limits: tuple[Any, ...] = ()

    @property
    def kind(self) -> Any:
        """The type of its value, without None."""
        return bare(self.annotation)

    @property
    def long(self) -> str:
        """`--tokens-per-micro-batch`."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def names(self) -> tuple[str, ...]:
        """All names that it has on a command line."""
        if self.placed:
            return ()
        negated = (f"--no-{self.long[2:]}",) if self.is_switch else ()
        return (self.long, *negated, *self.aliases)

    @property
    def is_switch(self) -> bool:
        """Whether it is on or off, and takes no value."""
        return self.kind is bool

    @property
    def is_several(self) -> bool:
        """Whether it takes any number of words."""
        return get_origin(self.kind) in (tuple, list, dict)

    @property
    def value(self) -> str:
        """What the help shows in the value's place: N, X, TEXT, PATH, NAME VALUE ..."""
        if self.is_switch:
            return ""
        origin, inner = get_origin(self.kind), get_args(self.kind)
        if origin is dict:
            return "NAME VALUE"
        one = self.metavar or self._metavar(inner[0] if origin in (tuple, list) else self.kind)
        return f"{one} ..." if origin in (tuple, list) else one

    def _metavar(self, kind: Any) -> str:
        if self.placed:
            return self.name.upper()
        if chosen := choices(kind):
            short = "|".join(map(str, chosen))
            return short if len(short) <= 20 else "NAME"
        kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else ()
        return _METAVARS.get(kind, "VALUE" if kinds else "TEXT")


def flags_of_settings(model: type[BaseModel]) -> list[Flag]:
    """The flags of a recipe's settings, in the order of the groups."""
    flags = [_of_field(name, field) for name, field in model.model_fields.items()]
    return sorted(flags, key=lambda flag: GROUPS.index(flag.group))


def _of_field(name: str, field: FieldInfo) -> Flag:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    default = NEEDED if field.is_required() else field.get_default(call_default_factory=True)
    return Flag(
        name,
        field.annotation,
        field.description or "",
        default,
        group=str(extra.get("group") or "Advanced"),
        metavar=str(extra.get("metavar") or ""),
        aliases=tuple(map(str, extra.get("aliases") or ())),  # type: ignore[arg-type]
        limits=tuple(field.metadata),
    )


def flags_of_function(function: Callable[..., Any]) -> list[Flag]:
    """The flags of a function: a parameter each, explained under `Args:` in its docstring. Places come first."""
    texts = argument_texts(function)
    hints = get_type_hints(function, include_extras=True)
    flags = []
    for name, parameter in inspect.signature(function).parameters.items():
        marks = _marks(hints[name])
        named = next((one for mark in marks if (one := getattr(mark, "metavar", None))), "")
        also = tuple(one for mark in marks for one in getattr(mark, "aliases", None) or ())
        default = NEEDED if parameter.default is inspect.Parameter.empty else parameter.default
        placed = tyro.conf.Positional in marks
        flags.append(Flag(name, hints[name], texts.get(name, ""), default, placed=placed, metavar=named, aliases=also))
    return sorted(flags, key=lambda flag: not flag.placed)


def _marks(hint: Any) -> list[Any]:
    """What a hint is annotated with."""
    return [*hint.__metadata__, *_marks(get_args(hint)[0])] if get_origin(hint) is Annotated else []


def argument_texts(function: Callable[..., Any]) -> dict[str, str]:
    """What the docstring's `Args:` say of each parameter, on one line each."""
    block = re.search(r"^Args:\n((?:[ ].*\n?|\n)+)", inspect.getdoc(function) or "", re.MULTILINE)
    texts: dict[str, str] = {}
    name = ""
    for line in (block[1] if block else "").splitlines():
        if match := re.match(r"    (\w+): (.*)", line):
            name = match[1]
            texts[name] = match[2].strip()
        elif line.strip() and name:
            texts[name] += f" {line.strip()}"
    return texts


def summary(function: Callable[..., Any]) -> str:
    """The docstring of a function above `Args:`, a line for each of its paragraphs."""
    text = (inspect.getdoc(function) or "").partition("\nArgs:")[0]
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))


def by_name(flags: Iterable[Flag]) -> dict[str, Flag]:
    """The flag for each way to write one on a command line."""
    return {name: flag for flag in flags for name in flag.names}
