"""Who may ask: the Host and Origin headers, keys, and how large a request may be. All before any route sees it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from ...refusals import Refused
from ...settings import ServeSettings
from ..answers import refusal
from .reading import Bodies, Gone, replayed

#: Paths that need no key: they tell nothing but that the server lives, and the page asks for a key itself.
OPEN = ("/", "/healthz", "/readyz", "/api/v1/healthz")
#: Below it lie files whose addresses are signed.
DOWNLOADS = "/api/v1/downloads/"
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
#: The owner of everything where there are no keys.
LOCAL = "local"
MAX_HEADERS = 100
_DENIED = "a key is needed in the header X-API-Key, and the one given, if any, is not known here"


class Guard:
    """ASGI middleware. What passes it has a known Host, no foreign Origin, a known key, and its body in memory.

    `scope["state"]["owner"]` says whose request it is.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app = app
        self._keys = Keys(settings.keys)
        self._hosts = known_hosts(settings)
        self.bodies = Bodies(settings.limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is refused; hand over the rest."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = b""
        try:
            headers = _headers(scope["headers"])
            self._check_address(headers)
            scope.setdefault("state", {})["owner"] = self._owner(scope["path"], headers)
            body = await self.bodies.read(receive, _length(headers))
        except Refused as refused:
            answer = refusal(refused)
            answer.headers["connection"] = "close"  # the rest of the request is not read
            await answer(scope, receive, send)
            return
        except Gone:
            return
        try:
            await self._app(scope, replayed(body, receive), send)
        finally:
            self.bodies.release(body)

    def _check_address(self, headers: dict[str, str]) -> None:
        """Raise Refused for a Host that is not ours, and for an Origin that is not this Host: pages of other sites."""
        host = headers.get("host", "")
        if not is_known_host(host_name(host), self._hosts):
            raise Refused(403, "the Host header names another server: start this one with that name in `hosts`")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Refused(403, "requests from web pages of other origins are not answered")

    def _owner(self, path: str, headers: dict[str, str]) -> str:
        if path in OPEN or path.startswith(DOWNLOADS):
            return LOCAL
        given = headers.get("x-api-key")
        if given is None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            given = given if scheme.lower() == "bearer" else ""
        return self._keys.owner(given.strip())


class Keys:
    """The keys that a server knows. Only their digests are compared, and always all of them."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._owners = [(_digest(key), owner_of(key)) for key in keys]

    def owner(self, key: str) -> str:
        """Whose key it is; `local` where no key is needed. Raises Refused(401), in the same words whatever is wrong."""
        if not self._owners:
            return LOCAL
        given, owner = _digest(key), None
        for digest, name in self._owners:
            owner = name if hmac.compare_digest(digest, given) else owner
        if owner is None:
            raise Refused(401, _DENIED)
        return owner


def owner_of(key: str) -> str:
    """A short name for a key, for folders and logs, from which the key does not follow."""
    return hashlib.sha256(b"owner of " + key.encode()).hexdigest()[:16]


def known_hosts(settings: ServeSettings) -> frozenset[str]:
    """Names under which the server is asked. Numeric addresses are always taken: no page can give its own name for one."""
    names = {*LOCAL_NAMES, settings.host, *settings.hosts}
    if not is_loopback(settings.host):
        names |= {socket.gethostname(), socket.getfqdn()}
    return frozenset(name.lower().rstrip(".") for name in names if name)


def is_known_host(name: str, known: frozenset[str]) -> bool:
    """Whether a host's name is one of the server's, or a numeric address."""
    return name in known or _address(name) is not None


def host_name(header: str) -> str:
    """The name in a Host header, without port and brackets; "" where it is none."""
    try:
        return (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by name. Raises Refused for a flood of them, and for two that contradict each other."""
    headers: dict[str, str] = {}
    count = 0
    for name, value in pairs:
        count += 1
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if key in ("host", "origin", "content-length", "x-api-key", "authorization") and headers.get(key, text) != text:
            raise Refused(400, f"the header {key} is there twice, with other values")
        headers[key] = text
    if count > MAX_HEADERS:
        raise Refused(431, f"the request has {count} headers; the limit is {MAX_HEADERS}")
    return headers


def _length(headers: dict[str, str]) -> int | None:
    text = headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise Refused(400, "Content-Length is no number")
    return int(text[:20])
