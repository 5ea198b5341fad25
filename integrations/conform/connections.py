"""How a server is reached: the API to build data with, service clients, and raw requests where there is HTTP."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ...datums.errors import ConfigError
from ...datums.extras import require
from .wire import Wire, http_post

#: What the official SDK takes for a key; a server that asks for none takes any.
ANY_KEY = "tml-local"


@dataclass(frozen=True)
class Connection:
    """One way to a server.

    name     for the report
    api      the module whose `Datum`, `ModelInput`, `AdamParams` ... the service's clients take
    service  makes a service client
    wire     makes a connection for requests of our own; None where there is no HTTP
    """

    name: str
    api: Any
    service: Callable[[], Any]
    wire: Callable[[float], Wire] | None = None

    def first_model(self) -> str:
        """The base model to train where none is named: the first that the service offers, in this process "tiny"."""
        if self.wire is None:
            return "tiny"
        service = self.service()
        offered = [one.model_name for one in service.get_server_capabilities().supported_models if one.model_name]
        if not offered:
            raise ConfigError(f"{self.name} names no models: say which with --model")
        return offered[0]


def in_process() -> Connection:
    """This process's own door, `lossbook.integrations.tinker`, with its settings."""
    from .. import tinker

    return Connection("this process (lossbook.integrations.tinker)", tinker, tinker.ServiceClient)


def over_http(base_url: str, api_key: str | None = None) -> Connection:
    """A server at an address, through the official `tinker` package.

    api_key: by default TINKER_API_KEY, else one that servers without keys take. Raises MissingExtraError without the package,
    ConfigError for an address that is none.
    """
    if not base_url.startswith(("http://", "https://")):
        raise ConfigError(f"--base-url is an address such as http://127.0.0.1:8000, not {base_url!r}")
    tinker = require("tinker", "serve", "a check of a server through the official SDK")
    key = api_key or os.environ.get("TINKER_API_KEY") or ANY_KEY
    address = base_url.rstrip("/")

    def wire(timeout: float) -> Wire:
        return Wire(http_post(address, key, timeout), timeout)

    def service() -> Any:
        _check_reached(address)
        return tinker.ServiceClient(base_url=address, api_key=key)

    return Connection(address, tinker, service, wire)


def _check_reached(address: str) -> None:
    """Raise ConnectionError unless something listens there: the SDK would try for minutes."""
    parts = urlsplit(address)
    try:
        socket.create_connection((parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)), 5).close()
    except OSError as error:
        raise ConnectionError(f"no server answers at {address}: {error}") from None
