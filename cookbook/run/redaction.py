"""Secrets are kept out of everything that is written: trackers, model cards, reports."""

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
_LOGIN_IN_URL = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]*(?=@)")
_KNOWN_FORMS = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,})\b")


def is_secret_name(name: str) -> bool:
    """Whether an environment variable holds a secret, judged by its name: HF_TOKEN, WANDB_API_KEY, ..."""
    return _SECRET_NAME.search(name) is not None


def redacted(value: Any) -> Any:
    """A JSON value with its secrets replaced: values of secret environment variables, logins in URLs, known token forms."""
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, Mapping):
        return {key: redacted(one) for key, one in value.items()}
    if isinstance(value, Sequence):
        return [redacted(one) for one in value]
    return value


def _clean(text: str) -> str:
    for name, secret in os.environ.items():
        if len(secret) >= _SHORTEST and is_secret_name(name):
            text = text.replace(secret, REDACTED)
    return _KNOWN_FORMS.sub(REDACTED, _LOGIN_IN_URL.sub(REDACTED, text))
