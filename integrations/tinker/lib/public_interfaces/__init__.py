"""`tinker.lib.public_interfaces`: the clients and futures, by the names under which other code imports them."""

from __future__ import annotations

from ...futures import APIFuture, AwaitableConcurrentFuture

__all__ = ["APIFuture", "AwaitableConcurrentFuture"]
