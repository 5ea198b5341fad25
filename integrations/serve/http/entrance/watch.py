"""Around every request: its id, its line in the log, its numbers, and an answer whatever goes wrong."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..answers import failed, json_response, new_incident
from ..metrics import Metrics

#: The status that is logged when the client was gone before an answer: nothing is sent then.
GONE = 499
#: What clients ask all the time; logged only when it goes wrong.
QUIET = ("/api/v1/retrieve_future", "/api/v1/session_heartbeat", "/healthz", "/readyz", "/api/v1/healthz", "/metrics")
POLL = "/api/v1/retrieve_future"
_log = logging.getLogger("lossbook.serve")


class Watch:
    """ASGI middleware, the outermost: every exception ends here, and becomes an answer with an incident's id.

    A poll for a future never gets a 5xx, which the SDK would repeat without a pause: its future fails instead.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; answer for it where it fails."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            with structlog.contextvars.bound_contextvars(request=secrets.token_hex(8)):
                await self._watched(scope, receive, _Sent(send, scope))

    async def _watched(self, scope: Scope, receive: Receive, sent: _Sent) -> None:
        begun = time.monotonic()
        self._metrics.begun()
        size = _Size(receive)
        try:
            await self._app(scope, size, sent)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            answer = self._after(error, scope["path"])
            if sent.status is None:
                await answer(scope, receive, sent)
        finally:
            self._note(scope, sent.status or GONE, time.monotonic() - begun, size.bytes)

    def _after(self, error: Exception, path: str) -> Response:
        incident = new_incident()
        _log.error("request failed", extra={"incident": incident, "path": path}, exc_info=error)
        message = f"{type(error).__name__}, incident {incident}: the server's log says more"
        return failed(message, "server") if path == POLL else json_response({"detail": message}, 500)

    def _note(self, scope: Scope, status: int, seconds: float, size: int) -> None:
        route = getattr(scope.get("route"), "path", None) or "unknown"
        self._metrics.answered(route, scope["method"], status, seconds, size)
        quiet = (route in QUIET and status < 400) or status == 408
        level = logging.DEBUG if quiet else logging.INFO if status < 500 else logging.ERROR
        if _log.isEnabledFor(level):
            facts = {"method": scope["method"], "route": route, "status": status, "seconds": round(seconds, 4)}
            owner = scope.get("state", {}).get("owner")
            _log.log(level, "answered", extra={**facts, "bytes": size, "owner": owner})


class _Sent:
    """`send` that remembers the status, and adds the request's id to the answer."""

    def __init__(self, send: Send, scope: Scope) -> None:
        self._send = send
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            request = structlog.contextvars.get_contextvars().get("request", "")
            headers = [*message.get("headers", ()), (b"x-request-id", str(request).encode())]
            message = {**message, "headers": headers}
        await self._send(message)


class _Size:
    """`receive` that counts the body's bytes."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.bytes = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self.bytes += len(message.get("body", b""))
        return message
