"""Configuration files of recipes: TOML or JSON, checked key by key against the recipe's settings."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, create_model

from ..datums.errors import ConfigError, did_you_mean

#: A value of a loss's or a task's settings, as it can be written in TOML or on a command line.
Setting = bool | int | float | str


def read_config(path: Path, model: type[BaseModel]) -> dict[str, Any]:
    """The file's values, converted to the types of the model's fields. Raises ConfigError naming file and key."""
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # both parsers' errors, and text that is not UTF-8
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"{path}: not {kind}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold names and values, not a {type(values).__name__}")
    return _converted(values, model, path)


def _converted(values: Mapping[str, Any], model: type[BaseModel], path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        field = model.model_fields.get(key)
        if field is None:
            known = ", ".join(model.model_fields)
            hint = did_you_mean(key, model.model_fields)
            raise ConfigError(f"{path}: no setting is called {key!r}.{hint} There are: {known}")
        this_field: dict[str, Any] = {key: (field.annotation, field)}
        alone = create_model(model.__name__, **this_field)  # the whole model's rules span fields, some still to come
        try:
            found[key] = getattr(alone(**{key: value}), key)
        except ValidationError as error:
            raise ConfigError(f"{path}: {key} = {value!r}: {error.errors()[0]['msg']}") from None
    return found
