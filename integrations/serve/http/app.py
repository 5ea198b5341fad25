"""`create_app`: the application, all routes with their guard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from ....datums import disk
from ..desk.desk import Desk
from ..ledger import Ledger
from ..refusals import Failed, Refused
from ..settings import ServeSettings
from .answers import failed, refusal
from .context import Context
from .entrance.guard import Guard
from .entrance.watch import POLL, Watch
from .routes import ROUTERS

_DESCRIPTION = """Tinker's protocol, as its SDK speaks it, on the models of this machine.

Training requests are protobuf, all others JSON. What takes time is answered by a promise, whose result `retrieve_future` gives."""


def create_app(settings: ServeSettings, desk: Desk | None = None) -> FastAPI:
    """The ASGI application. Without a desk it makes its own when it starts, and closes it when it ends."""
    context = Context(settings, desk)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        made = None
        if desk is None:
            disk.make_folder(settings.root.expanduser())
            made = Desk(settings, Ledger.of(settings))
            await made.start()
            context.begin(made)
        yield
        if made is not None and not context.is_stopping:  # else `serve` has closed it, and waited for what ran
            await made.close(settings.grace_seconds)

    app = FastAPI(
        title="lossbook serve",
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # the page of it would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        middleware=[Middleware(Watch, metrics=context.metrics), Middleware(Guard, settings=settings)],
    )
    app.state.context = context
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(Failed, _failed)
    for router in ROUTERS:
        app.include_router(router)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    """A refusal's status. A poll gets no 5xx, which the SDK would repeat without a pause: 429 makes it wait."""
    assert isinstance(error, Refused)
    if request.url.path == POLL and error.status >= 500:
        return refusal(Refused(429, error.message, retry_after=error.retry_after or 5))
    return refusal(error)


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, Failed)
    return failed(error.message, error.category)
