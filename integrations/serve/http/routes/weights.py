"""Saving and loading weights; each a promise."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ...wire.requests import LoadWeights, SaveWeights, SaveWeightsExternal, SaveWeightsForSampler
from ..answers import promise
from ..documented import REFUSALS, json_body
from ..submitted import given, submit

router = APIRouter(prefix="/api/v1", tags=["weights"], responses=REFUSALS)


@router.post("/save_weights", openapi_extra=json_body(SaveWeights))
async def save_weights(request: Request) -> Response:
    """A checkpoint with the optimizer's state, to train on from."""
    asked = await given(request, SaveWeights)
    return promise(await submit(request, "save_weights", asked), asked.request.model_id)


@router.post("/save_weights_for_sampler", openapi_extra=json_body(SaveWeightsForSampler))
async def save_weights_for_sampler(request: Request) -> Response:
    """A checkpoint to sample from; without a name, a sampling session in memory."""
    asked = await given(request, SaveWeightsForSampler)
    return promise(await submit(request, "save_weights_for_sampler", asked), asked.request.model_id)


@router.post("/save_weights_external", openapi_extra=json_body(SaveWeightsExternal))
async def save_weights_external(request: Request) -> Response:
    """An adapter as other programs load it, to download."""
    asked = await given(request, SaveWeightsExternal)
    return promise(await submit(request, "save_weights_external", asked), asked.request.model_id)


@router.post("/load_weights", openapi_extra=json_body(LoadWeights))
async def load_weights(request: Request) -> Response:
    """A checkpoint as a new model in training, or into one that is there."""
    asked = await given(request, LoadWeights)
    return promise(await submit(request, "load_weights", asked), asked.request.model_id)
