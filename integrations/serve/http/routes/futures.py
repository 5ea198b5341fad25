"""Results of promises, by polls that are held until there is one."""

from __future__ import annotations

import asyncio
import contextlib
import random

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ...operations import Answer
from ...refusals import Refused
from ...wire.requests import CancelFuture, RetrieveFuture, RetrieveFutures
from ..answers import json_response, outcome
from ..context import context_of, owner_of
from ..documented import REFUSALS, json_body
from ..submitted import given

router = APIRouter(prefix="/api/v1", tags=["futures"], responses=REFUSALS)
#: Seconds that polls are held while the server stops: what has not ended by then is answered after it starts again.
_LAST_HOLD = 1.0
#: Polls are held for this share of their time at least: those that began together end apart, so that they do not come back at once.
_SHORTEST_SHARE = 0.7


@router.post("/retrieve_future", openapi_extra=json_body(RetrieveFuture))
async def retrieve_future(request: Request) -> Response:
    """The result; 408 after `hold_seconds` without one, upon which the SDK asks again; 404 for an unknown id."""
    context, owner = context_of(request), owner_of(request)
    request_id = (await given(request, RetrieveFuture)).request.request_id
    hold = min(context.settings.hold_seconds, _LAST_HOLD) if context.is_stopping else context.settings.hold_seconds
    hold *= random.uniform(_SHORTEST_SHARE, 1.0)
    try:
        answer = await _while_connected(request, context.desk.retrieve(owner, request_id, hold))
    except Refused:
        raise
    except Exception:
        if not context.is_stopping:
            raise
        # The desk has closed its books. The result, if there is one, is in them: it must not be told as failed.
        raise Refused(503, "the server is being stopped: ask again when it runs again", retry_after=5) from None
    if answer is None:
        return json_response({"queue_state": context.desk.queue_state(request_id)}, 408)
    return outcome(answer)


@router.post("/cancel_future", openapi_extra=json_body(CancelFuture))
async def cancel_future(request: Request) -> Response:
    """Refused: `client/config` says that samples cannot be cancelled here."""
    raise Refused(400, "cancel_future is not offered here: let the result be")


@router.post("/retrieve_futures", openapi_extra=json_body(RetrieveFutures))
async def retrieve_futures(request: Request) -> Response:
    """Refused: `client/config` says that this server has no polls for several futures at once."""
    raise Refused(400, "retrieve_futures is not offered here: ask for each future with retrieve_future")


async def _while_connected(request: Request, waiting: asyncio.Future[Answer | None] | object) -> Answer | None:
    """What a poll waits for. When the client goes away the wait ends too, so that nobody waits for an answer nobody reads."""
    poll: asyncio.Task[Answer | None] = asyncio.ensure_future(waiting)  # type: ignore[arg-type]
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((poll, gone), return_when=asyncio.FIRST_COMPLETED)
        return poll.result() if poll.done() else None
    finally:
        for task in (poll, gone):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
