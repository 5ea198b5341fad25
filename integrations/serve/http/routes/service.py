"""The first calls of a client: what the server offers."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ...settings import ServeSettings
from ...wire.requests import ClientConfig
from ..answers import json_response
from ..context import context_of
from ..documented import REFUSALS, json_body
from ..entrance.guard import is_loopback
from ..submitted import given

router = APIRouter(prefix="/api/v1", tags=["service"], responses=REFUSALS)
#: Samples that a client may have under way: a few turns of the sampler.
_SAMPLES = 1024


@router.post("/client/config", openapi_extra=json_body(ClientConfig))
async def config(request: Request) -> Response:
    """How a client should behave: sizes of its requests, and which of its features this server has."""
    await given(request, ClientConfig)
    return json_response(flags(context_of(request).settings))


@router.post("/client/dynamic_config", openapi_extra=json_body(ClientConfig))
async def dynamic_config(request: Request) -> Response:
    """The same for what may change while a client runs."""
    await given(request, ClientConfig)
    return json_response(
        {"refresh_interval_sec": 300, "sample_cancel_enabled": False, "sample_cancel_max_batch_size": 64}
    )


@router.get("/get_server_capabilities")
async def server_capabilities(request: Request) -> Response:
    """The base models that clients may ask for."""
    return json_response(context_of(request).desk.capabilities())


@router.post("/telemetry")
async def telemetry(request: Request) -> Response:
    """Accepted and dropped: it carries tracebacks and headers of users."""
    return json_response({"status": "accepted"})


def flags(settings: ServeSettings) -> dict[str, object]:
    """The flags of `client/config`."""
    return {
        "pjwt_auth_enabled": False,
        "credential_default_source": "api_key",
        # Chunks in parallel arrive out of order, and the sums of floats would follow the network.
        "parallel_fwdbwd_chunks": False,
        # What the SDK does unasked since 0.25, and 0.38: passes as protobuf, and models made by the checkpoint that they load.
        "proto_write_fwdbwd": True,
        "fwd_via_fwdbwd": True,
        "create_model_via_load_weights": True,
        "proto_compress_fwdbwd": not is_loopback(settings.host),
        "fwdbwd_max_chunk_len": settings.limits.datums,
        "fwdbwd_max_chunk_bytes_count": min(32_000_000, settings.limits.body_bytes // 2),
        "fwdbwd_dispatch_bytes_semaphore_size": 50_000_000,
        "inflight_response_bytes_semaphore_size": 52_428_800,
        "sample_dispatch_bytes_semaphore_size": 10_485_760,
        "sample_max_concurrent_requests": min(_SAMPLES, settings.limits.requests_per_key),
        "sample_no_retries": False,
        "sample_enable_stuck_detection": True,
        "use_pyqwest_transport": True,
        "sample_use_retrieve_futures": False,
        "sample_join_sampling_session": True,
        "custom_loss_server_side": True,
        "billing_exception_max_pause_duration_sec": 0,
    }
