"""Sessions of clients: their beginning, heartbeat and end, and what is asked about them."""

from __future__ import annotations

from typing import Annotated, Literal, cast, get_args

from fastapi import APIRouter, Path, Query
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from ....tinker.types import SessionSearchRequest
from ...refusals import Refused
from ...wire.fields import Request as WireRequest
from ...wire.fields import Text
from ...wire.requests import CreateSession, FinishSession, Heartbeat
from ...wire.versions import check_version
from ..answers import json_response
from ..context import context_of, owner_of
from ..documented import REFUSALS, json_body
from ..stored import described, rest
from ..submitted import given

router = APIRouter(prefix="/api/v1", tags=["sessions"], responses=REFUSALS)
SessionId = Annotated[str, Path(max_length=256)]
Limit = Annotated[int, Query(ge=1, le=10_000)]
Offset = Annotated[int, Query(ge=0, lt=2**31)]
Reason = Literal["success", "errored", "interrupted"]


class Project(WireRequest):
    """`sessions/{id}/project`."""

    project_id: Text


class SessionSearch(WireRequest):
    """`sessions/search`."""


@router.post("/create_session", openapi_extra=json_body(CreateSession))
async def create_session(request: Request) -> Response:
    """Begin a session. A retry, which has the same X-Idempotency-Key, gives the same one."""
    context, owner = context_of(request), owner_of(request)
    asked = await given(request, CreateSession)
    check_version(asked.request.sdk_version)
    context.check_open()
    session_id = await context.desk.create_session(
        owner,
        user_metadata=asked.request.user_metadata,
        project_id=asked.request.project_id,
        display_name=asked.request.display_name,
        idempotency_key=request.headers.get("x-idempotency-key") or None,
    )
    return json_response({"type": "create_session", "session_id": session_id})


@router.post("/session_heartbeat", openapi_extra=json_body(Heartbeat))
async def session_heartbeat(request: Request) -> Response:
    """Say that a session's client lives."""
    asked = await given(request, Heartbeat)
    await context_of(request).desk.heartbeat(owner_of(request), asked.request.session_id)
    return json_response({"type": "session_heartbeat"})


@router.post("/sessions/search", openapi_extra=json_body(SessionSearch))
async def search_sessions(request: Request) -> Response:
    """Sessions by id, name, project, metadata or state, newest first."""
    fields = (await given(request, SessionSearch)).fields
    try:
        query = SessionSearchRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise Refused(422, f"{'.'.join(map(str, first['loc']))[:200]}: {first['msg'][:200]}") from None
    matching = await rest(request, lambda client: client.search_sessions(query))
    return described(request, matching)


@router.post("/sessions/{session_id}/finish", status_code=204, openapi_extra=json_body(FinishSession))
async def finish(request: Request, session_id: SessionId) -> Response:
    """End a session: its models leave the memory. The first word on how it ended counts."""
    asked = (await given(request, FinishSession)).request
    if asked.reason.type not in get_args(Reason):
        raise Refused(422, f"reason.type: one of {', '.join(get_args(Reason))}")
    reason = cast(Reason, asked.reason.type)
    await context_of(request).desk.finish(owner_of(request), session_id, reason, asked.detail)
    return Response(status_code=204)


@router.put("/sessions/{session_id}/project", status_code=204, openapi_extra=json_body(Project))
async def assign_project(request: Request, session_id: SessionId) -> Response:
    """Move a session, with its runs, into a project."""
    project = (await given(request, Project)).request.project_id
    await rest(request, lambda client: client.assign_session_project(session_id, project))
    return Response(status_code=204)


@router.get("/sessions")
async def list_sessions(request: Request, limit: Limit = 20, offset: Offset = 0) -> Response:
    """Ids of sessions, newest first."""
    return described(request, await rest(request, lambda client: client.list_sessions(limit, offset)))


@router.get("/sessions/{session_id}")
async def get_session(request: Request, session_id: SessionId) -> Response:
    """The runs and samplers of a session, in the order in which they were made."""
    return described(request, await rest(request, lambda client: client.get_session(session_id)))
