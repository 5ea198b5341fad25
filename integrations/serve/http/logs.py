"""The server's log: a line of JSON each, with the request's id, and without keys."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, TextIO

import structlog

REDACTED = "[redacted]"
#: Keys as Tinker's SDK takes them, whoever's they are.
_KEY_FORMS = re.compile(r"\b(?:tml-[A-Za-z0-9_\-.]{8,}|eyJ[A-Za-z0-9_\-]{8,}(?:\.[A-Za-z0-9_\-]+){0,2})")
#: Names of values that are never logged.
_SECRET_NAMES = re.compile(r"(?i)^(x-api-key|authorization|api_key|keys?|cookie|password|database)$")
_LOGIN_IN_URL = re.compile(r"(?<=://)[^/\s@\"'<>]+(?=@)")


class Redaction:
    """A structlog processor that takes keys out of all texts of a line."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = sorted((key for key in keys if key), key=len, reverse=True)

    def __call__(self, logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """The line without keys."""
        return {key: self._of(key, value) for key, value in event.items()}

    def text(self, text: str) -> str:
        """A text without keys."""
        for key in self._keys:
            text = text.replace(key, REDACTED)
        return _LOGIN_IN_URL.sub(REDACTED, _KEY_FORMS.sub(REDACTED, text))

    def _of(self, name: str, value: Any) -> Any:
        if _SECRET_NAMES.match(name) and value not in (None, ""):
            return REDACTED
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self._of(str(key), one) for key, one in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, bytes):
            return [self._of(name, one) for one in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        return self.text(repr(value))


def configure(keys: Iterable[str], *, stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Send this process's log, uvicorn's and the libraries' too, to `stream` (stderr) as lines of JSON."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    final = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        Redaction(keys),
        structlog.processors.JSONRenderer(),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=final)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
