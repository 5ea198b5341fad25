"""What the clients of this process share: lossbook's service, whose one queue runs all their calls, and how clients are made."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import os
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

from ...datums.errors import ConfigError
from ...trainer.clients.service import ServiceClient
from .errors import as_tinker_error
from .futures import APIFuture, AwaitableConcurrentFuture
from .settings import Settings
from .store.store import Store

C = TypeVar("C")
S = TypeVar("S")
P = ParamSpec("P")

_lock = threading.Lock()
_service: ServiceClient | None = None
_made_with: Settings | None = None
#: Makes clients, one after the other, so that the event loop goes on while a model is loaded.
_maker = concurrent.futures.ThreadPoolExecutor(1, "lossbook-tinker")


@dataclass(frozen=True)
class Session:
    """What a service client's clients have in common: an id, where their runs lie, and the settings of when it began.

    own: lossbook's service where it is not that of the process
    """

    id: str
    store: Store
    settings: Settings
    own: ServiceClient | None = None

    @property
    def service(self) -> ServiceClient:
        """Lossbook's service."""
        return service(self.settings) if self.own is None else self.own


def service(settings: Settings) -> ServiceClient:
    """Lossbook's service, of which a process has one. Raises ConfigError for settings that it was not made with."""
    global _service, _made_with
    with _lock:
        if _service is None or _made_with is None:
            _service, _made_with = ServiceClient(checkpoint_dir=settings.root, **settings.service), settings
        other = [name for name, value in settings.service.items() if _made_with.service[name] != value]
        if other:
            now = ", ".join(f"{name}={_made_with.service[name]!r}" for name in other)
            raise ConfigError(
                f"a model was loaded with {now}, and all models of a process run alike: configure it before the first client is made"
            )
        return _service


class ClientFuture(APIFuture[C]):
    """A client that may not be made yet, and the future of it; whatever is asked of the client waits for it.

    A subclass is also one of the client's class, so that the client's methods are there; what they read is the client's.
    """

    def __init__(self, made: APIFuture[C]) -> None:
        self._made = made

    def result(self, timeout: float | None = None) -> C:
        """The client; waits for it, at most `timeout` seconds (then TimeoutError)."""
        return self._made.result(timeout)

    async def result_async(self, timeout: float | None = None) -> C:
        """As `result`, without blocking the event loop."""
        return await self._made.result_async(timeout)

    def future(self) -> concurrent.futures.Future[C]:
        """The same as a standard future."""
        return self._made.future()

    def __getattr__(self, name: str) -> Any:
        if name == "_made" or name.startswith("__"):  # asked by copy and pickle of an object that holds nothing
            raise AttributeError(name)
        return getattr(self._made.result(), name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._made!r}>"


def answered(method: Callable[Concatenate[S, P], APIFuture[C]]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, C]]:
    """The twin, for asyncio, of a method that returns a future: awaiting it gives the value."""

    @functools.wraps(method)
    async def twin(self: S, *args: P.args, **kwargs: P.kwargs) -> C:
        future = method(self, *args, **kwargs)
        try:
            return await future
        except asyncio.CancelledError:
            future.future().cancel()  # a call that has not begun is withdrawn: nobody else can look at it
            raise

    twin.__name__, twin.__qualname__ = f"{method.__name__}_async", f"{method.__qualname__}_async"
    twin.__doc__ = f"Awaiting it gives the result of `{method.__name__}`."
    return twin


def making(label: str, make: Callable[[], C]) -> APIFuture[C]:
    """A future of a client, made on a thread for that. Failures become Tinker's exceptions; `label` names the call in them."""

    def run() -> C:
        try:
            return make()
        except Exception as error:
            failed = as_tinker_error(error, label)
            try:
                if failed is error:
                    raise
                raise failed from error
            finally:
                del failed

    return AwaitableConcurrentFuture(_maker.submit(run))


def _after_fork() -> None:
    """A forked child has neither the threads nor the queue: it begins anew, where lossbook lets it."""
    global _service, _made_with, _maker, _lock
    _service = _made_with = None
    _maker, _lock = concurrent.futures.ThreadPoolExecutor(1, "lossbook-tinker"), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
