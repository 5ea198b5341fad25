"""`serve`: a server process, from its first line to its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from ....datums.errors import ConfigError
from ..settings import ServeSettings
from . import logs
from .address import check_address, check_models, greeting
from .app import create_app
from .entrance.connection import MAX_HEADER_BYTES, Connection

#: Seconds that a connection may be idle; less than the SDK's pool keeps one would break requests now and then.
KEEP_ALIVE = 75
#: Connections and requests at one time; more are answered with 503.
MAX_CONNECTIONS = 20_000
#: Seconds for polls to fetch what was finished while the server was stopping.
FAREWELL = 2.0
_log = logging.getLogger("lossbook.serve")


def serve(settings: ServeSettings, *, announce: Callable[[str], None] = print) -> int:
    """Serve until SIGTERM or Ctrl-C; returns 0 after a stop in which running work could end.

    A first signal stops new work with 503 and gives running work `grace_seconds`; then models go to the disk. A second
    one ends the process at once. `announce` gets the lines for whoever started the server. Raises ConfigError for an address
    that needs keys, or that is taken, and for a model's path at which nothing is.
    """
    check_address(settings)
    check_models(settings)
    logs.configure(settings.keys)
    _allow_connections()
    listener = _bound(settings)
    try:
        app = create_app(settings)
        server = _Server(uvicorn_config(app, settings), app, settings)
        host, port = listener.getsockname()[:2]
        server.on_start = lambda: [announce(line) for line in greeting(settings, host, port)]
        server.run(sockets=[listener])
    finally:
        listener.close()
    return 0


def uvicorn_config(app: FastAPI, settings: ServeSettings) -> uvicorn.Config:
    """How uvicorn runs the application: its limits on time, size and number."""
    protocol = type("Connection", (Connection,), {"header_seconds": settings.limits.header_seconds})
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(FAREWELL) + 1,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )


def _bound(settings: ServeSettings) -> socket.socket:
    """A listening socket, bound before any model is loaded. Raises ConfigError where that fails."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen at {settings.host}, port {settings.port}: {error.strerror or error}. Another server may be "
            "there; --port 0 takes a free port"
        ) from None
    listener.set_inheritable(False)
    return listener


def _allow_connections() -> None:
    """Let the process have as many open files as the system allows it: each poll that is held is a connection."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else min(2 * MAX_CONNECTIONS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Server(uvicorn.Server):
    """uvicorn's server, which on the first signal lets the desk end its work before it closes connections."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, settings: ServeSettings) -> None:
        super().__init__(config)
        self._context = app.state.context
        self._grace = settings.grace_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Task[None] | None = None
        self.on_start: Callable[[], object] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            self.on_start()
            sys.stdout.flush()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the stop; the second ends the process."""
        if self._context.is_stopping or self._loop is None or not self.started:
            sys.stderr.flush()
            os._exit(128 + sig)
        self._context.is_stopping = True
        self._loop.call_soon_threadsafe(self._begin_stop, sig)

    def _begin_stop(self, sig: int) -> None:
        self._stop = asyncio.get_running_loop().create_task(self._stopped(signal.Signals(sig).name))

    async def _stopped(self, name: str) -> None:
        _log.info("stopping", extra={"signal": name, "grace_seconds": self._grace})
        try:
            await self._context.desk.close(self._grace)
        except Exception as error:
            _log.error("the desk did not close well", exc_info=error)
        until = asyncio.get_running_loop().time() + FAREWELL
        while self.server_state.tasks and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.05)
        _log.info("stopped")
        self.should_exit = True
