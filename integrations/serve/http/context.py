"""What all routes share: the desk, the settings, and how a request becomes work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from starlette.requests import Request

from ...tinker.store.store import Store
from ..operations import Answer, Operation
from ..refusals import Refused
from ..settings import ServeSettings
from .metrics import Metrics

T = TypeVar("T")
#: Bytes of a body from which it is read in a thread, so that other requests are answered meanwhile.
LARGE = 64 * 1024
_STOPPING = "the server is being stopped and takes no new work"


class DeskLike(Protocol):
    """What the routes need of the desk; see `desk.Desk`."""

    async def create_session(self, owner: str, request: Any) -> str: ...
    async def heartbeat(self, owner: str, session_id: str) -> None: ...
    async def finish(self, owner: str, session_id: str, reason: str, detail: str | None) -> None: ...
    async def submit(self, operation: Operation) -> str: ...
    async def retrieve(self, owner: str, request_id: str, hold: float) -> Answer | None: ...
    def queue_state(self, request_id: str) -> str: ...
    async def info(self, owner: str, model_id: str) -> Mapping[str, Any]: ...
    async def create_sampling_session(self, owner: str, request: Any) -> str: ...
    async def join_sampling_session(self, owner: str, sampling_session_id: str) -> int: ...
    async def sampler(self, owner: str, sampler_id: str) -> Mapping[str, Any]: ...
    async def cancel(self, owner: str, request_id: str) -> None: ...
    async def used_up(self, scope: str, counter: str, number: int) -> None: ...
    def problem(self) -> str | None: ...
    def status(self) -> Mapping[str, Any]: ...
    async def close(self, grace: float) -> None: ...


class Context:
    """The desk and the settings of an application. `app.state.context`."""

    def __init__(self, settings: ServeSettings, desk: DeskLike | None) -> None:
        self.settings = settings
        self._desk = desk
        self.metrics = Metrics(lambda: {} if self._desk is None else self._desk.status())
        self.is_stopping = False

    @property
    def desk(self) -> DeskLike:
        """The desk. Raises Refused(503) before it is there."""
        if self._desk is None:
            raise Refused(503, "the server is starting", retry_after=1)
        return self._desk

    def open(self, desk: DeskLike | None) -> None:
        """Set the desk."""
        self._desk = desk

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

    def store(self, owner: str) -> Store:
        """The runs and checkpoints of an owner, and nobody else's."""
        return Store(owner_root(self.settings, owner))


def owner_root(settings: ServeSettings, owner: str) -> Path:
    """The folder of an owner's runs and checkpoints."""
    return settings.root.expanduser().absolute() / "owners" / owner


def context_of(request: Request) -> Context:
    """The context of the application that a request came to."""
    return request.app.state.context


def owner_of(request: Request) -> str:
    """Whose request it is; the guard has checked it."""
    return request.scope["state"]["owner"]


async def body_of(request: Request, content_type: str = "application/json") -> bytes:
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
