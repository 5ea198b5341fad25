"""`tinker.resources`: the SDK's requests to its server, by endpoint. In one process there is none to send them to."""

from __future__ import annotations

from typing import NoReturn


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(f"tinker.resources.{name} sends requests to a server; in one process use the clients")
