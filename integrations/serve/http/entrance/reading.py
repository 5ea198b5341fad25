"""The body of a request: read whole before it is looked at, within limits of size and time."""

from __future__ import annotations

import asyncio
import time

from starlette.types import Message, Receive

from ...refusals import Refused
from ...settings import Limits

#: Bytes per second below which a client is taken for one that only holds the connection.
SLOWEST = 64 * 1024
#: Seconds for which what comes after a refusal is read and dropped: else the client sees a reset connection, not the refusal.
LINGER = 1.0
#: Bodies of the largest size that may wait in memory at one time.
BODIES = 8


class Bodies:
    """Reads bodies; knows how many bytes of them are in memory."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.bytes = 0  # of all requests that are in work

    async def read(self, receive: Receive, declared: int | None) -> bytes:
        """The whole body. Counted in `bytes` until `release` is called with it.

        declared: Content-Length. Raises Refused: 413 over `body_bytes`, 408 when it comes too slowly, 429 when other requests
        fill the memory.
        """
        largest = self._limits.body_bytes
        if declared is not None and declared > largest:
            await _drop(receive)
            raise Refused(413, f"the request has {declared} bytes; the limit body_bytes is {largest}")
        parts: list[bytes] = []
        size, begun = 0, time.monotonic()
        try:
            while True:
                left = begun + self._limits.header_seconds + size / SLOWEST - time.monotonic()
                message = await _next(receive, left)
                part = message.get("body", b"")
                size, self.bytes = size + len(part), self.bytes + len(part)
                if size > largest:
                    parts.clear()
                    await _drop(receive)
                    raise Refused(413, f"the request has more bytes than the limit body_bytes, {largest}")
                if self.bytes > BODIES * largest:
                    raise Refused(429, "the server holds as many requests as fit into its memory", retry_after=1)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
        except BaseException:
            self.bytes -= size
            raise

    def release(self, body: bytes) -> None:
        """Forget a body that `read` returned."""
        self.bytes -= len(body)


class Gone(Exception):
    """The client has closed the connection before its request was whole."""


async def _next(receive: Receive, seconds: float) -> Message:
    try:
        message = await asyncio.wait_for(receive(), max(seconds, 0.001))
    except TimeoutError:
        raise Refused(408, "the request's body came too slowly: send it again") from None
    if message["type"] == "http.disconnect":
        raise Gone
    return message


async def _drop(receive: Receive) -> None:
    """Read on for a moment without keeping anything, so that a client which writes before it reads hears the refusal."""
    try:
        async with asyncio.timeout(LINGER):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass
    except TimeoutError:
        pass


def replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` for the application: the body in one piece, and after it what else comes, such as the connection's end."""
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
