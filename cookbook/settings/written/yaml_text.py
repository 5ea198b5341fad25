"""YAML of configuration files, read so that a value is what it looks like, or refused.

Plain words are read as YAML 1.2 has them, where 1e-4 is a number and 2026-11-30 a text. What YAML 1.1 and 1.2 read differently
is refused with the mend: yes, no, on, off, 010, 1:30, 1_000. So are tags, anchors and keys that appear twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from ....datums.checks.json_text import MAX_NESTING, unique

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
#: What the two versions read differently, and what to write instead.
_BOOLEANS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
_OTHER_NUMBER = re.compile(
    r"[-+]?(0[0-9_]+|0[xob][0-9a-fA-F_]+|[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?|[0-9][0-9_]*_[0-9_.]*)"
)


class YamlMistake(ValueError):
    """What is wrong with a YAML text, and on which line, counted from 1."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line


def read_yaml(text: str) -> Any:
    """The value of a YAML text of one document; None for an empty one. Raises YamlMistake."""
    try:
        events = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        return _document(events)
    except yaml.MarkedYAMLError as error:
        line = 1 + (error.problem_mark.line if error.problem_mark else 0)
        raise YamlMistake(line, " ".join(filter(None, (error.context, error.problem)))) from None
    except yaml.YAMLError as error:  # a character that no YAML text may have
        raise YamlMistake(1, str(error).splitlines()[0]) from None


def lines_of_keys(text: str) -> dict[str, int]:
    """The line of each key of the outermost mapping of a YAML or JSON text; as far as it can be read."""
    lines: dict[str, int] = {}
    depth, is_key = 0, True
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if depth == 1 and is_key and isinstance(event, yaml.ScalarEvent):
                lines.setdefault(event.value, event.start_mark.line + 1)
            if depth == 1 and isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
                is_key = not is_key
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
    except yaml.YAMLError:
        pass
    return lines


def _document(events: Iterator[Any]) -> Any:
    next(events)  # the stream's start
    event = next(events)
    if isinstance(event, yaml.StreamEndEvent):
        return None
    value = _value(next(events), events, 0)
    next(events)  # the document's end
    if not isinstance(event := next(events), yaml.StreamEndEvent):
        raise YamlMistake(_line(event), "a second document begins here; a configuration file holds one")
    return value


def _value(event: Any, events: Iterator[Any], depth: int) -> Any:
    """The value that begins with an event."""
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        raise YamlMistake(_line(event), f"the anchor {event.anchor!r} is not read: write the value out")
    if event.tag is not None:
        raise YamlMistake(_line(event), f"the tag {event.tag!r} is not read: leave it out")
    if depth > MAX_NESTING:
        raise YamlMistake(_line(event), "lists or mappings are nested too deeply")
    if isinstance(event, yaml.ScalarEvent):
        return event.value if event.style is not None else _plain(event.value, _line(event))
    if isinstance(event, yaml.SequenceStartEvent):
        return [_value(inner, events, depth + 1) for inner in _until(events, yaml.SequenceEndEvent)]
    pairs = []
    for key in _until(events, yaml.MappingEndEvent):
        name = _value(key, events, depth + 1)
        if not isinstance(name, str) or key.value == "<<":
            raise YamlMistake(_line(key), f"the key {getattr(key, 'value', name)!r} is no name: put it in quotes")
        if any(name == other for other, _ in pairs):
            raise YamlMistake(_line(key), f"the key {name!r} appears more than once, so one value would be lost")
        pairs.append((name, _value(next(events), events, depth + 1)))
    return unique(pairs)


def _until(events: Iterator[Any], end: type) -> Iterator[Any]:
    while not isinstance(event := next(events), end):
        yield event


def _plain(word: str, line: int) -> Any:
    """The value of a word without quotes."""
    if word in _WORDS:
        return _WORDS[word]
    if word.lower() in _BOOLEANS:
        raise YamlMistake(
            line,
            f"{word} is a truth value to some readers of YAML and a text to others: write {_BOOLEANS[word.lower()]}, or "
            f'"{word}" with quotes',
        )
    if _INTEGER.fullmatch(word):
        return int(word)
    if _FLOAT.fullmatch(word) and not re.fullmatch(r"[-+]?0[0-9]+", word):
        return float(word)
    if word.lstrip("+-").lower() in (".inf", ".nan"):
        return float(word.replace(".", ""))
    if _OTHER_NUMBER.fullmatch(word):
        raise YamlMistake(
            line,
            f'{word} is read as different numbers by different readers: write it in digits, or "{word}" with quotes',
        )
    return word


def _line(event: Any) -> int:
    return event.start_mark.line + 1
