"""Clients that are futures of themselves, and the async twins of their methods.

Code for Tinker's SDK waits for a client (`await service.create_lora_training_client(...)`, or `.result()`) and calls methods by
their older names in asyncio (`await client.forward_backward_async(...)`). A twin is made from its method, with its signature.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from .futures import Future

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


class AwaitableClient:
    """A client that can be waited for, and is there already."""

    def result(self, timeout: float | None = None) -> Self:
        """The client itself."""
        return self

    async def result_async(self, timeout: float | None = None) -> Self:
        """The client itself."""
        return self

    async def coroutine(self) -> Self:
        """The client itself, from a coroutine, which `asyncio.create_task` takes."""
        return self

    def future(self) -> concurrent.futures.Future[Self]:
        """A standard future that holds the client."""
        future: concurrent.futures.Future[Self] = concurrent.futures.Future()
        future.set_result(self)
        return future

    def __await__(self) -> Generator[Any, None, Self]:
        return self.result_async().__await__()


def queued(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """The twin of a method that does not wait: awaiting it calls the method, and gives what that gives, such as a `Future`."""

    @functools.wraps(method)
    async def twin(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        return method(self, *args, **kwargs)

    return _named(twin, method, "Awaiting it queues the call, and gives what {} gives.")


def awaited(method: Callable[Concatenate[S, P], Future[T]]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """The twin of a method whose calls do not build on each other: awaiting it gives the result.

    Where the await is cancelled, a call that has not begun is withdrawn: nobody else can look at it.
    """

    @functools.wraps(method)
    async def twin(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        future = method(self, *args, **kwargs)
        try:
            return await future
        except asyncio.CancelledError:
            future.cancel()
            raise

    return _named(twin, method, "Awaiting it gives the result of {}.")


def in_thread(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """The twin of a method that takes long, such as one that loads a model: a thread waits for it, the event loop goes on."""

    @functools.wraps(method)
    async def twin(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(method, self, *args, **kwargs)

    return _named(twin, method, "Awaiting it gives what {} gives; the event loop goes on meanwhile.")


def _named(twin: Any, method: Callable[..., Any], doc: str) -> Any:
    name: str = method.__name__
    twin.__name__, twin.__qualname__ = f"{name}_async", f"{method.__qualname__}_async"
    twin.__doc__ = doc.format(f"`{name}`")
    return twin
