"""One connection: headers that come too slowly or are too large are answered and the connection is closed."""

from __future__ import annotations

import asyncio
import sys

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

#: Bytes that a request's line and headers may take.
MAX_HEADER_BYTES = 64 * 1024
#: Seconds for which what comes after a refusal is dropped.
LINGER = 1.0
_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 protocol with a time limit on headers, and status 431 where they are too large.

    uvicorn limits the time between two requests only: a client that sends one byte of a header now and then would keep its
    connection for ever.
    """

    header_seconds: float = 30.0
    _waiting: asyncio.TimerHandle | None = None
    _is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first request."""
        super().connection_made(transport)
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Stop the clock when the headers are whole; start it with the first bytes of another request."""
        if self._is_refused:
            return
        super().data_received(data)
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._waiting is None and self.conn.trailing_data[0]:
            self._wait_for_headers()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, by the status that h11 has for it."""
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        self._refuse(status if status in _REASONS else 400, msg)

    def _wait_for_headers(self) -> None:
        self._waiting = self.loop.call_later(self.header_seconds, self._headers_are_late)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _headers_are_late(self) -> None:
        self._waiting = None
        if not self.transport.is_closing():
            self._refuse(408, "The request's headers came too slowly.")

    def _refuse(self, status: int, message: str) -> None:
        self._stop_waiting()
        body = message.encode("ascii", "replace")
        head = b"HTTP/1.1 %d %s\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (status, _REASONS[status], len(body)) + body)
        self._is_refused = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        # Closed at once, what is still on its way would reset the connection before the client has read the answer.
        self.loop.call_later(LINGER, self.transport.close)
