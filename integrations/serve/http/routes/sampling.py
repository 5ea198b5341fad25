"""Samplers, and samples from them."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ...desk.desk import sequence_ids
from ...wire.requests import CreateSamplingSession, JoinSamplingSession
from ...wire.samples import Sample
from ..answers import json_response, promise
from ..context import context_of, owner_of
from ..documented import REFUSALS, json_body
from ..stored import Id
from ..submitted import given, submit

router = APIRouter(prefix="/api/v1", tags=["sampling"], responses=REFUSALS)


@router.post("/create_sampling_session", openapi_extra=json_body(CreateSamplingSession))
async def create_sampling_session(request: Request) -> Response:
    """A sampler of saved weights, or of a base model."""
    context, asked = context_of(request), (await given(request, CreateSamplingSession)).request
    context.check_open()
    sampler_id = await context.desk.create_sampling_session(
        owner_of(request),
        session_id=asked.session_id,
        number=asked.sampling_session_seq_id,
        base_model=asked.base_model,
        model_path=asked.model_path,
    )
    return json_response({"type": "create_sampling_session", "sampling_session_id": sampler_id})


@router.post("/join_sampling_session", openapi_extra=json_body(JoinSamplingSession))
async def join_sampling_session(request: Request) -> Response:
    """A number for one more client of a sampler, such as one that was sent to another process."""
    asked = (await given(request, JoinSamplingSession)).request
    counter = await context_of(request).desk.join_sampling_session(owner_of(request), asked.sampling_session_id)
    return json_response({"type": "join_sampling_session", "client_counter": counter})


@router.get("/samplers/{sampler_id}")
async def get_sampler(request: Request, sampler_id: Id) -> Response:
    """What a sampler samples from."""
    described = await context_of(request).desk.sampler(owner_of(request), sampler_id)
    return json_response({key: value for key, value in described.items() if value is not None})


@router.post("/asample", openapi_extra=json_body(Sample))
async def asample(request: Request) -> Response:
    """Samples; a promise, with the ids of the sequences that will come."""
    asked = await given(request, Sample)
    request_id = await submit(request, "sample", asked)
    return promise(request_id, sample_sequence_ids=sequence_ids(request_id, asked.request.num_samples))
