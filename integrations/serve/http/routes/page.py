"""The status page, and the data that it shows."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ...page.page import status_page
from ..answers import json_response
from ..context import context_of, owner_of
from ..documented import REFUSALS

router = APIRouter(tags=["status"])


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The page, which has no data in it and needs no key."""
    shown = status_page()
    return Response(shown.body, headers=dict(shown.headers))


@router.get("/api/status", responses=REFUSALS)
async def status(request: Request) -> Response:
    """What the server is doing, as the caller may see it: a `Status`."""
    return json_response(context_of(request).desk.status(owner_of(request)))
