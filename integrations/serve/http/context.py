"""What all routes share: the desk, the settings, and how a request becomes work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import Request

from ..desk.desk import Desk
from ..operations import JSON, Operation
from ..refusals import Refused
from ..settings import ServeSettings
from .metrics import Metrics

T = TypeVar("T")
#: Bytes of a body from which it is read in a thread, so that other requests are answered meanwhile.
LARGE = 64 * 1024
_STOPPING = "the server is being stopped and takes no new work"


class Context:
    """The desk and the settings of an application. `app.state.context`."""

    def __init__(self, settings: ServeSettings, desk: Desk | None) -> None:
        self.settings = settings
        self._desk: Desk | None = None
        self.metrics = Metrics(lambda: {} if self._desk is None else self._desk.status())
        self.is_stopping = False
        if desk is not None:
            self.begin(desk)

    @property
    def desk(self) -> Desk:
        """The desk. Raises Refused(503) before it is there."""
        if self._desk is None:
            raise Refused(503, "the server is starting", retry_after=1)
        return self._desk

    def begin(self, desk: Desk) -> None:
        """Set the desk, and count what it runs."""
        self._desk = desk
        desk.observers.append(self.metrics.ran)

    @property
    def is_open(self) -> bool:
        """Whether there is a desk, and it takes work."""
        return self._desk is not None and not self.is_stopping

    def check_open(self) -> None:
        """Raise Refused(503), with the seconds after which to ask again, while the server is being stopped."""
        if self.is_stopping:
            raise Refused(503, _STOPPING, retry_after=5)

    async def submit(self, operation: Operation) -> str:
        """Hand work to the desk; returns the id to ask for its result with."""
        self.check_open()
        return await self.desk.submit(operation)


def context_of(request: Request) -> Context:
    """The context of the application that a request came to."""
    return request.app.state.context


def owner_of(request: Request) -> str:
    """Whose request it is; the guard has checked it."""
    return request.scope["state"]["owner"]


async def body_of(request: Request, content_type: str = JSON) -> bytes:
    """The request's body, which has to be of a content type. Raises Refused(415) for another.

    A web page can send a form to any address, but not JSON without being asked first: that is why the type is checked.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != content_type:
        raise Refused(415, f"this address takes {content_type}, and the request says {given or 'nothing'}")
    return await request.body()


async def read(raw: bytes, reader: Callable[..., T], *arguments: Any) -> T:
    """What a reader makes of its arguments; in a thread where `raw`, which is among them, is large."""
    if len(raw) < LARGE:
        return reader(*arguments)
    return await asyncio.to_thread(reader, *arguments)
