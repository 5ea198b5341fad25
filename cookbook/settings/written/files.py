"""Configuration files: TOML, JSON or YAML, checked key by key. The same settings give the same configuration in each."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo

from ....datums.checks.json_text import strict_json
from ....datums.errors import ConfigError, did_you_mean
from .needs import bare, mistake, refusal
from .places import beside
from .yaml_text import YamlMistake, lines_of_keys, read_yaml

_READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    ".toml": ("TOML", tomllib.loads),
    ".json": ("JSON", strict_json),
    ".yaml": ("YAML", read_yaml),
    ".yml": ("YAML", read_yaml),
}


def read_config(path: Path, model: type[BaseModel]) -> dict[str, Any]:
    """The file's values, converted to the types of the model's fields; files that it names as `beside` finds them.

    Raises ConfigError with file, line and key.
    """
    if path.suffix.lower() not in _READERS:
        raise ConfigError(f"{path}: the name of a configuration file ends in {', '.join(_READERS)}")
    kind, read = _READERS[path.suffix.lower()]
    try:
        text = path.read_text(encoding="utf-8")
        values = read(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: tables or lists are nested too deeply") from None
    except YamlMistake as error:
        raise ConfigError(f"{path}, line {error.line}: {error}") from None
    except ValueError as error:  # both other parsers' errors, and text that is not UTF-8
        raise ConfigError(f"{path}: not {kind}: {error}") from None
    if values is None and kind == "YAML":
        values = {}  # as an empty TOML file
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold names and values, not a {type(values).__name__}")
    return beside(_converted(values, model, path, text), path.parent)


def _converted(values: Mapping[str, Any], model: type[BaseModel], path: Path, text: str) -> dict[str, Any]:
    converted: dict[str, Any] = {}
    for key, value in values.items():
        field = model.model_fields.get(key)
        if field is None:
            hint = did_you_mean(key, model.model_fields) or did_you_mean(key, model.model_fields, cutoff=0.4)
            raise ConfigError(f"{_place(path, text, key)}: no setting is called {key!r}.{hint}")
        try:
            converted[key] = value_of(key, value, field)
        except ValueError as error:
            raise ConfigError(f"{_place(path, text, key)}: {error}") from None
    return converted


def value_of(key: str, value: Any, field: FieldInfo) -> Any:
    """The value as the field has it. Raises ValueError, in words. Truth values and numbers are not taken for one another."""
    is_truth = bare(field.annotation) is bool
    if (
        value is not None
        and is_truth != isinstance(value, bool)
        and (is_truth or bare(field.annotation) in (int, float))
    ):
        raise ValueError(refusal(key, value, field.annotation, field.metadata))
    this_field: dict[str, Any] = {key: (field.annotation, field)}
    alone = create_model(
        key, __config__=ConfigDict(allow_inf_nan=False), **this_field
    )  # one field: flags may still add what other rules need
    try:
        return getattr(alone(**{key: value}), key)
    except ValidationError as error:
        raise ValueError(mistake(error, {key: field})) from None


def _place(path: Path, text: str, key: str) -> str:
    """The file, and the line that gives a setting, where it can be told."""
    line = _line_in_toml(text, key) if path.suffix.lower() == ".toml" else lines_of_keys(text).get(key)
    return f"{path}, line {line}" if line else str(path)


def _line_in_toml(text: str, key: str) -> int | None:
    own = re.compile(rf"""\s*(\[+\s*)?["']?{re.escape(key)}["']?\s*[\].=]""")
    within = False
    for number, line in enumerate(text.splitlines(), start=1):
        match = own.match(line)
        if match and (match[1] or not within):
            return number
        within = within or line.lstrip().startswith("[")
    return None
