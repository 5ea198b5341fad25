"""How the methods of these clients answer: with futures, and with the exceptions of an HTTP status."""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from ....datums.errors import CheckpointError, CheckpointExistsError, CheckpointNotFoundError
from ..errors import APIStatusError, BadRequestError, ConflictError, NotFoundError, refusal
from ..futures import APIFuture, AwaitableConcurrentFuture

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


def answered(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], APIFuture[T]]:
    """The method with its answer in a future, which is there at once.

    What the store refuses, and what is not possible here, the future raises as the hosted service would: NotFoundError for
    names that are not there, ConflictError for what is so already, BadRequestError for all else.
    """

    @functools.wraps(method)
    def call(self: S, *args: P.args, **kwargs: P.kwargs) -> APIFuture[T]:
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        try:
            future.set_result(method(self, *args, **kwargs))
        except APIStatusError as error:
            future.set_exception(error)
        except CheckpointError as error:
            future.set_exception(refusal(_status_of(error), str(error), error))
        return AwaitableConcurrentFuture(future)

    return call


def twin(method: Callable[Concatenate[S, P], APIFuture[T]]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """The method's older name for asyncio: awaiting it gives the answer itself."""

    @functools.wraps(method)
    async def call(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        return await method(self, *args, **kwargs)

    call.__name__ = f"{method.__name__}_async"
    call.__qualname__ = f"{method.__qualname__}_async"
    call.__doc__ = f"The answer of `{method.__name__}`, awaited."
    return call


def refused(what: str, nearest: str) -> BadRequestError:
    """The error of what needs the hosted service. `nearest`: what does most of it here."""
    return refusal(BadRequestError, f"{what} is not possible in one process. {nearest}")


def _status_of(error: CheckpointError) -> type[APIStatusError]:
    if isinstance(error, CheckpointNotFoundError):
        return NotFoundError
    return ConflictError if isinstance(error, CheckpointExistsError) else BadRequestError
