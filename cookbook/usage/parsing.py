"""Words of a command line to a command's settings or arguments. tyro reads them; what it refuses is said in one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, make_dataclass, replace
from functools import partial, wraps
from typing import Annotated, Any, TypeVar

import tyro
from pydantic import BaseModel, ValidationError

from ...datums.errors import ConfigError
from ..settings.written.needs import mistake
from .flags import NEEDED, Flag, flags_of_function, flags_of_settings
from .mistakes import mistake_in

T = TypeVar("T")


def settings_from(model: type[BaseModel], words: Sequence[str], values: Mapping[str, Any], program: str) -> BaseModel:
    """The settings that the words give, over the values of a file. Raises ConfigError for what is wrong with them."""
    flags = with_defaults(flags_of_settings(model), values)
    given = _parsed(_plain_class(flags), words, flags, program)
    try:
        return model(**vars(given))
    except ValidationError as error:
        raise ConfigError(mistake(error, model.model_fields, lambda name: f"--{name.replace('_', '-')}")) from None


def call_from(function: Callable[..., Any], words: Sequence[str], program: str) -> partial[Any]:
    """The function with the arguments that the words give. Raises ConfigError for what is wrong with them."""
    later = wraps(function)(lambda *given, **named: partial(function, *given, **named))
    return _parsed(later, words, flags_of_function(function), program)


def with_defaults(flags: Sequence[Flag], values: Mapping[str, Any]) -> list[Flag]:
    """The flags with the values of a file as their defaults."""
    return [replace(flag, default=values.get(flag.name, flag.default)) for flag in flags]


def _plain_class(flags: Sequence[Flag]) -> type:
    """A class whose fields are the flags, without the bounds that the settings check themselves."""
    fields: list[tuple[str, Any, Any]] = []
    for flag in sorted(flags, key=lambda flag: flag.default is not NEEDED):
        kind = Annotated[flag.annotation, tyro.conf.arg(aliases=flag.aliases)] if flag.aliases else flag.annotation
        fields.append((flag.name, kind, field() if flag.default is NEEDED else field(default_factory=_same(flag))))
    return make_dataclass("Flags", fields)


def _same(flag: Flag) -> Callable[[], Any]:
    return lambda: flag.default


def _parsed(target: Callable[..., T], words: Sequence[str], flags: Sequence[Flag], program: str) -> T:
    os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")
    try:
        return tyro.cli(target, args=words, prog=program, console_outputs=False, add_help=False)
    except SystemExit:
        said = mistake_in(words, flags, program)
    if said is None:
        return tyro.cli(target, args=words, prog=program)  # tyro says what it does not take
    raise ConfigError(said)
