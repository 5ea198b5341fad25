"""One request to an ASGI application, message by message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Heard:
    """What an application sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    app: Any,
    path: str = "/",
    *,
    method: str = "POST",
    headers: Sequence[tuple[str, str]] = (("host", "localhost"),),
    parts: Sequence[bytes] = (b"",),
    query: bytes = b"",
    between: Callable[[], Awaitable[None]] | None = None,
    gone: asyncio.Event | None = None,
) -> Heard:
    """Send a request whose body comes in parts, `between` awaited before each; then stay until `gone`."""
    heard, left = Heard(), list(parts)

    async def receive() -> dict[str, Any]:
        if not left:
            await (gone or asyncio.Event()).wait()
            return {"type": "http.disconnect"}
        if between is not None:
            await between()
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            heard.status = message["status"]
            heard.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            heard.body += message.get("body", b"")

    await app(scope(path, method, headers, query), receive, send)
    return heard


def scope(
    path: str, method: str = "POST", headers: Sequence[tuple[str, str]] = (("host", "localhost"),), query: bytes = b""
) -> dict[str, Any]:
    """A request as an ASGI server describes it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }
