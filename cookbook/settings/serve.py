"""Settings of `lossbook serve`: those of the server, each with its group."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from ...datums.errors import ConfigError, did_you_mean
from ...integrations.serve.settings import Limits, ServeSettings
from .groups import Group, setting

#: Keys for a server whose command line others can see: separated by spaces, commas or line breaks.
KEYS_VARIABLE = "LOSSBOOK_SERVE_KEYS"
_GROUPS: dict[Group, tuple[str, ...]] = {
    "Server": ("host", "port", "keys", "hosts", "insecure"),
    "Model": ("models", "device", "dtype", "base_weights", "stable_reinforce"),
    "Memory": ("tokens_per_micro_batch", "workers", "models_in_memory", "idle_seconds"),
    "Output": ("root", "database"),
}
_GROUP_OF: dict[str, Group] = {name: group for group, names in _GROUPS.items() for name in names}


def _fields() -> dict[str, Any]:
    """A field for each of the server's settings; its limits, which are many, are one flag with names and numbers."""
    fields: dict[str, Any] = {}
    for name, field in ServeSettings.model_fields.items():
        if name == "limits":
            shown = "what a request may ask for, by name: --limits datums 1024 samples 64"
            fields[name] = (dict[str, float], setting("Advanced", {}, shown))
            continue
        shown = f"{field.description}" + (f"; ${KEYS_VARIABLE} too" if name == "keys" else "")
        default = setting(_GROUP_OF.get(name, "Advanced"), field.default, shown)
        default.metadata = field.metadata
        fields[name] = (field.annotation, default)
        if name == "keys":
            help = "a file with a key on each line, instead of --keys"
            fields["keys_file"] = (Path | None, setting("Server", None, help))
    return fields


#: Settings of the command; each field is a flag.
ServeConfig: Any = create_model(
    "ServeConfig",
    __config__=ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True),
    __module__=__name__,
    **_fields(),
)


def settings_of(config: BaseModel) -> ServeSettings:
    """The server's settings, with the keys of the file and of the environment. Raises ConfigError for what is wrong with them."""
    values = config.model_dump(exclude_unset=True)
    file = values.pop("keys_file", None)
    keys = [*values.pop("keys", ()), *_split(os.environ.get(KEYS_VARIABLE, ""))]
    if file is not None:
        try:
            keys += _split(Path(file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--keys-file {file}: {getattr(error, 'strerror', None) or 'it is no text'}") from None
    for key in keys:
        _check_key(key)
    limits = {name: int(value) if value == int(value) else value for name, value in values.pop("limits", {}).items()}
    for name in limits:
        if name not in Limits.model_fields:
            raise ConfigError(f"--limits: {name!r} is none.{did_you_mean(name, Limits.model_fields)}")
    try:
        return ServeSettings(**values, keys=tuple(dict.fromkeys(keys)), limits=Limits(**limits))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _split(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _check_key(key: str) -> None:
    """Raise ConfigError for a key that Tinker's SDK would not send. The message does not have it."""
    if not key.startswith("tml-") or len(key) < 12 or not key.isascii() or not key.isprintable():
        raise ConfigError(
            "a key must begin with tml-, as Tinker's SDK wants it, and have 12 characters or more: "
            "python -c 'import secrets; print(\"tml-\" + secrets.token_urlsafe(32))'"
        )
