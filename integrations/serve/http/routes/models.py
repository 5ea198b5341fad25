"""Models in training, and custom losses."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ...wire.requests import CreateCustomLoss, CreateModel, GetInfo
from ..answers import json_response, promise
from ..context import context_of, owner_of
from ..documented import REFUSALS, json_body
from ..submitted import given, submit

router = APIRouter(prefix="/api/v1", tags=["models"], responses=REFUSALS)


@router.post("/create_model", openapi_extra=json_body(CreateModel))
async def create_model(request: Request) -> Response:
    """A model in training; a promise."""
    asked = await given(request, CreateModel)
    return promise(await submit(request, "create_model", asked))


@router.post("/get_info", openapi_extra=json_body(GetInfo))
async def get_info(request: Request) -> Response:
    """What a model in training is."""
    asked = await given(request, GetInfo)
    return json_response(await context_of(request).desk.get_info(owner_of(request), asked.request.model_id))


@router.post("/create_custom_loss", openapi_extra=json_body(CreateCustomLoss))
async def create_custom_loss(request: Request) -> Response:
    """A loss of the client's own, as a graph of allowed operations; a promise of its id."""
    asked = await given(request, CreateCustomLoss)
    return promise(await submit(request, "create_custom_loss", asked))
