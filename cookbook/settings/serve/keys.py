"""The server's settings of the command's flags, and keys from where others do not see them."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ValidationError

from ....datums.errors import ConfigError, did_you_mean
from ....integrations.serve.settings import Limits, ServeSettings

#: Keys for a server whose command line others can see: separated by spaces, commas or line breaks.
KEYS_VARIABLE = "LOSSBOOK_SERVE_KEYS"


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
    if not values.get("models"):
        values.pop("models", None)
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
