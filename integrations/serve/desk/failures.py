"""What a client is told of a failure: its own mistakes in words, and of all else a number under which the log has it."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterable

from ....datums.errors import LossbookError, SamplerError, WorkerDiedError, WorkerError
from ...tinker.errors import APIStatusError, RequestFailedError
from ..operations import Answer, Operation
from ..refusals import Failed, Refused

#: Errors of lossbook that no change of the call mends.
_NOT_THE_CALLERS = (SamplerError, WorkerDiedError, WorkerError)
#: An absolute path of two parts or more, and not the end of a tinker:// path or an address.
_PATH = re.compile(r"(?<![\w:/.~-])(?:/[\w.@+~=-]+){2,}/?")
_log = logging.getLogger(__name__)


def failure_of(error: BaseException, operation: Operation, hidden: Iterable[str]) -> Failed:
    """How a call's future fails.

    hidden: paths that are not told. What is not the caller's mistake is logged with its traceback, and told as the class of the
    error and an incident's id.
    """
    if isinstance(error, Failed):
        return error
    if isinstance(error, Refused):
        return Failed(error.message, "user" if error.status < 429 else "server")
    cause = error.__cause__ if isinstance(error, RequestFailedError) and error.__cause__ is not None else error
    if isinstance(error, APIStatusError) or (
        isinstance(cause, LossbookError) and not isinstance(cause, _NOT_THE_CALLERS)
    ):
        return Failed(without_paths(str(cause), hidden), "user")
    incident = secrets.token_hex(6)
    _log.error(
        "%s (request %s of %s) failed: incident %s",
        operation.kind,
        operation.number,
        operation.scope,
        incident,
        exc_info=cause,
    )
    return Failed(f"{type(cause).__name__}, incident {incident}: the server's log says more", "server")


def is_of_the_engine(error: BaseException) -> bool:
    """Whether the processes that hold the models are gone."""
    return isinstance(error, WorkerDiedError) or isinstance(error.__cause__, WorkerDiedError)


def failed_answer(failed: Failed) -> Answer:
    """The answer of a future that fails."""
    return Answer(error=failed.message, category=failed.category)


def without_paths(message: str, hidden: Iterable[str] = ()) -> str:
    """A message in one line, without places on the server's disk."""
    for path in sorted(hidden, key=len, reverse=True):
        message = re.sub(re.escape(path) + r"[\w./@+~=:-]*", "the server's folder", message)
    return " ".join(_PATH.sub("the server's folder", message).split())
