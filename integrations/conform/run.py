"""Runs all checks against one server."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Sequence

from ...datums.errors import ConfigError
from ..refusal import is_refusal
from . import checks as checks  # they enter themselves into PROMISES when they are imported
from .connections import Connection
from .promises import PROMISES, Broken, DoesNotApply, Promise
from .report import Finding, Report, Verdict
from .server import Server
from .settings import ConformSettings
from .wire import WireError


def check_server(
    connection: Connection,
    settings: ConformSettings | None = None,
    only: Sequence[str] = (),
    heard: Callable[[Finding], None] | None = None,
) -> Report:
    """Check every promise of a server, or those whose ids match one of the patterns `only` (such as "sample.*").

    heard: is told each finding as it is made. Raises ConfigError for a pattern that matches none, ConnectionError where no
    model can be trained at all, with the server's answer.
    """
    settings = settings or ConformSettings()
    chosen = [one for one in PROMISES.values() if not only or any(fnmatch.fnmatch(one.id, each) for each in only)]
    for pattern in only:
        if not fnmatch.filter(PROMISES, pattern):
            raise ConfigError(f"no promise matches {pattern!r}. There are: {', '.join(PROMISES)}")
    try:
        server = Server(connection, settings)
        server.prepare()
    except Exception as error:
        raise ConnectionError(
            f"{connection.name}: a model {settings.model!r} could not be trained, so nothing was checked: {_told(error, settings)}"
        ) from error
    findings = []
    for one in chosen:
        findings.append(_checked(server, one))
        if heard is not None:
            heard(findings[-1])
    close = getattr(server.service, "close", None)
    if close is not None:
        server.answer(close("success"))
    return Report(connection.name, settings.model_dump(), tuple(findings))


def _checked(server: Server, one: Promise) -> Finding:
    begun = time.monotonic()
    verdict: Verdict
    try:
        verdict, figure = "holds", one.check(server)
    except Broken as broken:
        verdict, figure = "fails", str(broken)
    except DoesNotApply as why:
        verdict, figure = "does not apply", str(why)
    except Exception as error:
        refused = one.optional and (is_refusal(error) or isinstance(error, WireError))
        verdict, figure = ("not offered" if refused else "fails"), _told(error, server.settings)
    return Finding(one.id, one.sentence, verdict, figure, one.look_at, round(time.monotonic() - begun, 3))


def _told(error: BaseException, settings: ConformSettings) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {settings.timeout:g} s"
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]
