"""Whether the server lives, whether it takes work, and its numbers."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ...refusals import Refused
from ..answers import json_response
from ..context import context_of
from ..metrics import CONTENT_TYPE

router = APIRouter(tags=["health"])


@router.get("/healthz")
@router.get("/api/v1/healthz")
async def healthz(request: Request) -> Response:
    """`{"status": "ok"}`, or 503 where the engine that runs the models has died or hangs."""
    if context_of(request).is_stopping:  # it ends by itself, and whoever watches need not help
        return json_response({"status": "ok"})
    try:
        problem = context_of(request).desk.trouble
    except Refused as refused:
        problem = refused.message
    return json_response({"status": "ok"} if problem is None else {"status": problem}, 200 if problem is None else 503)


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """`{"status": "ok"}` while new work is taken, else 503."""
    if not context_of(request).is_open:
        return json_response({"status": "starting or stopping"}, 503, {"retry-after": "5"})
    return await healthz(request)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Numbers in Prometheus's text format."""
    return Response(context_of(request).metrics.text(), media_type=CONTENT_TYPE)
