"""A server's HTTP: what is safe is tried again, what is read is bounded, and every failure is one line."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ....datums.checks.json_text import strict_json
from ....datums.errors import ConfigError, SamplerError
from ...redaction import redacted
from ...settings.sampler import KEY_VARIABLE, checked_url

#: Statuses of a server that is busy or about to be back: too many requests, and those of gateways.
BUSY = frozenset({429, 502, 503, 504})
#: Seconds before each further attempt, and the most that a server's Retry-After may ask for.
WAITS, LONGEST_WAIT = (0.5, 1.0, 2.0, 4.0, 8.0), 30.0
#: Bytes that an answer without samples may have.
SMALL = 2**22


class Connection:
    """Requests to one server, from any number of threads.

    timeout   seconds for one request, from sending it to the end of its answer
    waits     seconds before each further attempt

    A request is repeated where the server was not reached, and one that changes nothing there (`repeatable`) also where its
    answer broke off or the server was busy. One that took longer than `timeout` is not: it would take as long again.
    """

    def __init__(self, url: str, *, timeout: float, connections: int, waits: Sequence[float] = WAITS) -> None:
        import httpx2

        self.url, self.timeout, self.waits = checked_url(url), timeout, tuple(waits)
        try:
            httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise ConfigError(f"--sampler-url {redacted(url)!r} is no address: {error}") from None
        self._closed = threading.Event()
        self._client = httpx2.Client(
            headers=_headers(),
            timeout=httpx2.Timeout(timeout, connect=min(timeout, 10.0)),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def close(self) -> None:
        """End all connections; requests under way fail."""
        self._closed.set()
        self._client.close()

    def get(self, path: str) -> Any:
        """The JSON at a path. Raises SamplerError."""
        return self.value(self._request("GET", path, None, SMALL, repeatable=True), path)

    def post(self, path: str, body: Mapping[str, Any], *, most: int = SMALL, repeatable: bool = False) -> bytes:
        """What the server answers to a JSON body, at most so many bytes. Raises SamplerError."""
        return self._request("POST", path, body, most, repeatable=repeatable)

    def value(self, content: bytes, path: str) -> Any:
        """The content as JSON. Raises SamplerError where it is not, or not whole."""
        try:
            return strict_json(content.decode())
        except ValueError as error:
            text = _one_line(content)
            raise SamplerError(
                f"{self.url}{path} answered {len(content)} bytes that are not whole JSON ({error}): {text[:80]!r}"
            ) from None

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None, most: int, *, repeatable: bool) -> bytes:
        import httpx2

        for wait in (*self.waits, None):
            try:
                status, asked, content = self._once(method, path, body, most)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                if wait is None or self._closed.is_set():
                    raise SamplerError(self._away(error)) from None
                asked = 0.0
            except httpx2.TimeoutException:
                raise SamplerError(self._late(path)) from None
            except (httpx2.TransportError, httpx2.DecodingError) as error:
                if wait is None or not repeatable or self._closed.is_set():
                    raise SamplerError(f"{self.url}{path} broke off its answer: {_text(error)}") from None
                asked = 0.0
            else:
                if status == 200:
                    return content
                if wait is None or not repeatable or status not in BUSY:
                    raise SamplerError(self._refusal(path, status, content))
            self._closed.wait(max(wait, min(asked, LONGEST_WAIT)))
        raise AssertionError("the last attempt returns or raises")

    def _once(self, method: str, path: str, body: Mapping[str, Any] | None, most: int) -> tuple[int, float, bytes]:
        """Status, the seconds that Retry-After asks for, and content of one answer."""
        end, parts, size = time.monotonic() + self.timeout, [], 0
        with self._client.stream(method, self.url + path, json=body) as response:
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > most:
                    raise SamplerError(
                        f"{self.url}{path} answers with more than {most} bytes, which no such answer has"
                    )
                if time.monotonic() > end:
                    raise SamplerError(self._late(path))
            asked = response.headers.get("retry-after", "")
            return response.status_code, float(asked) if asked.isdecimal() else 0.0, b"".join(parts)

    def _away(self, error: Exception) -> str:
        return (
            f"the sampling server at {self.url} is not reached ({_text(error)}) in {len(self.waits) + 1} attempts: start it, "
            "or correct --sampler-url"
        )

    def _late(self, path: str) -> str:
        return (
            f"{self.url}{path} gave no whole answer in {self.timeout:g} s: it may be overloaded (--sampler-connections) or "
            "need longer (--sampler-timeout)"
        )

    def _refusal(self, path: str, status: int, content: bytes) -> str:
        hint = f"; set {KEY_VARIABLE} to the server's API key" if status in (401, 403) else ""
        return f"{self.url}{path} refuses with status {status}: {reason_in(content)}{hint}"


def reason_in(content: bytes) -> str:
    """What a refusal says, in one line, in any of the forms that servers give it, without secrets."""
    try:
        value = strict_json(content.decode())
    except ValueError:
        return _one_line(content) or "it gives no reason"
    while isinstance(value, Mapping):
        value = next((value[key] for key in ("error", "message", "error_message", "detail") if value.get(key)), None)
    text = value if isinstance(value, str) else json.dumps(value)
    return redacted(" ".join(text.split()))[:300] if value else "it gives no reason"


def _headers() -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{KEY_VARIABLE} holds characters that no HTTP header can have")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _text(error: Exception) -> str:
    return redacted(" ".join(str(error).split()))[:200] or type(error).__name__


def _one_line(content: bytes) -> str:
    return redacted(" ".join(content[:2000].decode(errors="replace").split()))[:300]
