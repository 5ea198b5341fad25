"""What is wrong with the words of a command line, in one line: the flag, what it takes, and the likely mend."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from ...datums.errors import did_you_mean
from ..settings.written.needs import bare, choices, refusal
from .flags import NEEDED, Flag, by_name


def mistake_in(words: Sequence[str], flags: Sequence[Flag], program: str) -> str | None:
    """What is wrong with the words, or None where nothing is seen."""
    known, places = by_name(flags), [flag for flag in flags if flag.placed]
    given: set[str] = set()
    loose, rest = _split(words)
    for name, values in rest:
        flag = known.get(name)
        if flag is None:
            return _unknown(name, known, program)
        given.add(flag.name)
        if said := _values(name, values, flag):
            return said
        loose += values[1:] if not flag.is_switch and not flag.is_several else values if flag.is_switch else []
    several = any(place.is_several for place in places)
    if len(loose) > len(places) and not several:
        return (
            f"{program} does not take {reprlib.repr(loose[len(places)])} here; `{program} --help` lists what it takes"
        )
    for place, word in zip(places, loose, strict=False):
        if said := _wrong(place.value, word, place.kind):
            return said
    filled = {place.name for place in places[: len(loose)]}
    for flag in flags:
        if flag.default is NEEDED and flag.name not in given | filled:
            shown = flag.value if flag.placed else f"{flag.long} {flag.value}"
            return f"{program} needs {shown}: {flag.help.rstrip('.')}"
    return None


def _split(words: Sequence[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The words before the first flag, and each flag with the words after it."""
    loose: list[str] = []
    rest: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            rest.append((name.replace("_", "-"), [value] if equals else []))
        elif rest:
            rest[-1][1].append(word)
        else:
            loose.append(word)
    return loose, rest


def _unknown(name: str, known: dict[str, Flag], program: str) -> str:
    hint = did_you_mean(name, known) or did_you_mean(name, known, cutoff=0.4)
    return f"{program} has no flag {name}.{hint} `{program} --help` lists its flags"


def _values(name: str, values: list[str], flag: Flag) -> str | None:
    """What is wrong with the words after a flag."""
    if flag.is_switch:
        return None
    if get_origin(flag.kind) is dict:
        if len(values) % 2:
            return f"{name} takes pairs of a name and a value, and {reprlib.repr(values[-1])} has no value after it"
        return None
    if flag.is_several:
        inner = bare(get_args(flag.kind)[0])
        return next((said for value in values if (said := _wrong(name, value, inner))), None)
    if not values:
        return f"{name} needs a value after it: {flag.help.rstrip('.')}"
    return _wrong(name, values[0], flag.annotation, flag.limits)


def _wrong(name: str, word: str, annotation: Any, limits: tuple[Any, ...] = ()) -> str | None:
    """What is wrong with one word as a value of this type."""
    kind = bare(annotation)
    if word == "None" and kind is not annotation:
        return None
    try:
        kind(word) if kind in (int, float) else None
    except ValueError:
        return refusal(name, word, annotation, limits)
    chosen = choices(kind)
    return refusal(name, word, annotation) if chosen and word not in map(str, chosen) else None
