"""`tinker.lib.public_interfaces.api_future`."""

from __future__ import annotations

from ...futures import APIFuture, AwaitableConcurrentFuture

__all__ = ["APIFuture", "AwaitableConcurrentFuture"]
