"""The status page: one file of HTML that loads nothing, and the headers that hold it to that."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True)
class Page:
    """What is answered to `GET /`: HTML in UTF-8, and all its headers but the length."""

    body: bytes
    headers: Mapping[str, str]


@cache
def status_page() -> Page:
    """The page that shows `GET api/status`, a `Status`, asked for every two seconds while somebody looks.

    It holds no data and needs no key; it asks its reader for one where the server answers 401, and sends it as X-API-Key. Its
    policy lets run what stands in the file, by hash, and nothing else: no other script or style, no request but to this server,
    no frame around it, and no markup made from text.
    """
    body = Path(__file__).with_name("status.html").read_bytes()
    policy = {
        "default-src": "'none'",
        "script-src": _hash_of(body, "script"),
        "style-src": _hash_of(body, "style"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    headers = {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(), geolocation=(), microphone=()",
        "cache-control": "no-store",
    }
    return Page(body, MappingProxyType(headers))


def _hash_of(body: bytes, tag: str) -> str:
    """The policy's source for the one element of this tag."""
    _, _, rest = body.partition(f"<{tag}>".encode())
    inside, _, _ = rest.partition(f"</{tag}>".encode())
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside).digest()).decode()}'"
