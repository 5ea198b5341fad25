"""Sessions of clients: their beginning, heartbeat and end, and what is asked about them."""

from __future__ import annotations


from fastapi import APIRouter, Path, Query
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from ....tinker.rest.described import page
from ....tinker.rest.search import search
from ....tinker.types import SessionSearchRequest
from ...refusals import Refused
from ...wire.fields import Request as WireRequest
from ...wire.fields import Text
from ...wire.requests import CreateSession, FinishSession, Heartbeat
from ..answers import json_response
from ..context import context_of, owner_of
from ..documented import REFUSALS, json_body
from ..stored import asked_of
from ..submitted import given

router = APIRouter(prefix="/api/v1", tags=["sessions"], responses=REFUSALS)
SessionId = Annotated[str, Path(max_length=256)]
Limit = Annotated[int, Query(ge=1, le=10_000)]
Offset = Annotated[int, Query(ge=0, lt=2**31)]
REASONS = ("success", "errored", "interrupted")


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
    context.check_open()
    key = request.headers.get("x-idempotency-key")
    session_id = await context.once(owner, key, lambda: context.desk.create_session(owner, asked.request))
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
    matching = await asked_of(request, lambda store: search(store, query))
    owner = f"lossbook:{owner_of(request)}"
    sessions = [one.model_copy(update={"owner": owner}) for one in matching.sessions]
    return json_response(matching.model_copy(update={"sessions": sessions}).model_dump(mode="json", exclude_none=True))


@router.post("/sessions/{session_id}/finish", status_code=204, openapi_extra=json_body(FinishSession))
async def finish(request: Request, session_id: SessionId) -> Response:
    """End a session: its models leave the memory. The first word on how it ended counts."""
    asked = (await given(request, FinishSession)).request
    if asked.reason.type not in REASONS:
        raise Refused(422, f"reason.type: one of {', '.join(REASONS)}")
    await context_of(request).desk.finish(owner_of(request), session_id, asked.reason.type, asked.detail)
    return Response(status_code=204)


@router.put("/sessions/{session_id}/project", status_code=204, openapi_extra=json_body(Project))
async def assign_project(request: Request, session_id: SessionId) -> Response:
    """Move a session, with its runs, into a project."""
    project = (await given(request, Project)).request.project_id
    await asked_of(request, lambda store: store.sessions.assign_project(session_id, project))
    return Response(status_code=204)


@router.get("/sessions")
async def list_sessions(request: Request, limit: Limit = 20, offset: Offset = 0) -> Response:
    """Ids of sessions, newest first."""
    sessions, _ = await asked_of(request, lambda store: page(store.sessions.all(), limit, offset))
    return json_response({"sessions": [session.session_id for session in sessions]})


@router.get("/sessions/{session_id}")
async def get_session(request: Request, session_id: SessionId) -> Response:
    """The runs and samplers of a session, in the order in which they were made."""

    def described(store):  # type: ignore[no-untyped-def]
        session = store.sessions.get(session_id)
        runs = sorted(store.runs(session_id=session_id), key=lambda run: run.created)
        return {
            "training_run_ids": [run.run_id for run in runs],
            "sampler_ids": [sampler.sampler_id for sampler in store.sessions.samplers(session_id)],
            "user_metadata": session.user_metadata,
            "display_name": session.display_name,
        }

    return json_response(await asked_of(request, described))


