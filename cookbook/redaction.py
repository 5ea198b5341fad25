"""Secrets are kept out of everything that is written: a run's files, trackers, model cards, messages of errors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

REDACTED = "[redacted]"
#: Names of environment variables whose values are secrets.
_SECRET_NAME = re.compile(r"(^|_)(APIKEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
#: Shorter values are not redacted: they would match inside ordinary words.
_SHORTEST = 8
_LOGIN_IN_URL = re.compile(r"(?<=://)[^/\s@\"'<>]+(?=@)")
_SECRET_IN_URL = re.compile(r"(?i)(?<=[?&])((?:\w+_)?(?:key|apikey|token|secret|password|sig|signature)=)[^&\s\"'<>#]+")
_KNOWN_FORMS = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,})\b")
#: Names of settings whose texts are secrets, if they are at least this long: shorter ones are names of columns or of tokens.
_SECRET_SETTING = re.compile(r"(?i)(^|_)(api_?key|access_?key|token|secret|password|passwd|credentials?)$")
_SHORTEST_SETTING = 16


def is_secret_name(name: str) -> bool:
    """Whether an environment variable holds a secret, judged by its name: HF_TOKEN, WANDB_API_KEY, ..."""
    return _SECRET_NAME.search(name) is not None


def redacted(value: Any) -> Any:
    """A JSON value with its secrets replaced: values of secret environment variables, those in URLs, and known forms of tokens.

    Long texts under a name such as api_key are replaced as well.
    """
    named = [
        text.strip() for name, text in os.environ.items() if is_secret_name(name)
    ]  # a file's last line break came along
    secrets = [text for text in named if len(text) >= _SHORTEST]
    return _without(value, sorted(secrets, key=len, reverse=True))  # one may be a part of another


def _without(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, str):
        return _clean(value, secrets)
    if isinstance(value, Mapping):
        return {_clean(str(key), secrets): _setting(str(key), one, secrets) for key, one in value.items()}
    if isinstance(value, Sequence):
        return [_without(one, secrets) for one in value]
    return value


def _setting(name: str, value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, str) and len(value) >= _SHORTEST_SETTING and _SECRET_SETTING.search(name):
        return REDACTED
    return _without(value, secrets)


def _clean(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    text = _SECRET_IN_URL.sub(rf"\1{REDACTED}", _LOGIN_IN_URL.sub(REDACTED, text))
    return _KNOWN_FORMS.sub(REDACTED, text)
