"""Forward and backward, and the optimizer's steps."""

from __future__ import annotations

from typing import NoReturn

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ...operations import JSON, PROTOBUF, Operation
from ...refusals import Refused
from ...wire.body import canonical_hash, read_body
from ...wire.requests import JsonPass, OptimStep
from ...wire.training import ForwardBackward, read_forward_backward
from ...wire.versions import too_old
from ..answers import promise
from ..context import body_of, context_of, owner_of, read
from ..documented import REFUSALS, json_body, protobuf_body
from ..submitted import given, note_used, submit

router = APIRouter(prefix="/api/v1", tags=["training"], responses=REFUSALS)


@router.post("/forward_backward", openapi_extra=protobuf_body("ForwardBackwardRequest"))
async def forward_backward(request: Request) -> Response:
    """A forward pass and, unless forward_only, its backward; a promise of logprobs and metrics."""
    context, limits = context_of(request), context_of(request).settings.limits
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == JSON:
        await _refuse(request, 415)
    raw = await body_of(request, PROTOBUF)

    def reader() -> tuple[ForwardBackward, str]:
        body = read_body(raw, request.headers.get("content-encoding"), limits)
        return read_forward_backward(body, limits), canonical_hash("forward_backward", body)

    try:
        asked, body_hash = await read(raw, reader)
    except Refused as refused:
        await note_used(request, refused)
        raise
    operation = Operation(
        owner=owner_of(request),
        kind="forward" if asked.forward_only else "forward_backward",
        scope=asked.model_id,
        number=asked.seq_id,
        counter="seq",
        body_hash=body_hash,
        payload=asked,
    )
    return promise(await context.submit(operation), asked.model_id)


@router.post("/forward", include_in_schema=False)
async def forward(request: Request) -> Response:
    """Refused: only versions of the SDK that are too old ask here."""
    await _refuse(request, 400)


async def _refuse(request: Request, status: int) -> NoReturn:
    """Refuse a pass in JSON. Its number is used up: what the client asks for next does not wait for it."""
    asked = (await given(request, JsonPass)).request
    used = None if asked.model_id is None or asked.seq_id is None else (asked.model_id, "seq", asked.seq_id)
    refused = Refused(status, too_old(), used=used)
    await note_used(request, refused)
    raise refused


@router.post("/optim_step", openapi_extra=json_body(OptimStep))
async def optim_step(request: Request) -> Response:
    """One step of the optimizer with the gradients since the last; a promise of metrics."""
    asked = await given(request, OptimStep)
    return promise(await submit(request, "optim_step", asked), asked.request.model_id)
