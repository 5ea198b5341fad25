"""Searching sessions."""

from __future__ import annotations

from ..store import SessionRecord, Store
from ..types import (
    ClientFinishedSessionStatusQuery,
    ClientSessionFinished,
    ClientSessionFinishErrored,
    ClientSessionFinishInterrupted,
    ClientSessionFinishSuccess,
    SessionActive,
    SessionSearchCursor,
    SessionSearchRequest,
    SessionSearchResponse,
    SessionStatus,
    SessionStatusQuery,
    SessionSummary,
    UserSearchOwner,
)
from .described import owner

_FINISHES = {
    "success": ClientSessionFinishSuccess(),
    "errored": ClientSessionFinishErrored(),
    "interrupted": ClientSessionFinishInterrupted(),
}


def search(store: Store, request: SessionSearchRequest) -> SessionSearchResponse:
    """The sessions that a search asks for, newest first, from its cursor on."""
    matching = [session for session in store.sessions.all() if _matches(store, session, request)]
    if (cursor := request.cursor) is not None:
        last = (cursor.last_created_at, cursor.last_session_id)
        matching = [session for session in matching if (session.created, session.session_id) < last]
    here = matching[: request.limit]
    end = None
    if len(matching) > len(here):
        end = SessionSearchCursor(last_created_at=here[-1].created, last_session_id=here[-1].session_id)
    return SessionSearchResponse(sessions=[_summary(store, session) for session in here], next_cursor=end)


def _matches(store: Store, session: SessionRecord, request: SessionSearchRequest) -> bool:
    words = (request.display_name or "").casefold().split()
    return (
        (
            (request.session_id is None and request.display_name is None)
            or session.session_id == request.session_id
            or (bool(words) and all(word in (session.display_name or "").casefold() for word in words))
        )
        and (request.project_ids is None or session.project_id in request.project_ids)
        and request.user_metadata.items() <= (session.user_metadata or {}).items()
        and (not isinstance(request.owner, UserSearchOwner) or owner() in request.owner.owner_urns)
        and (request.statuses is None or any(_is_in(_status(store, session), query) for query in request.statuses))
    )


def _is_in(status: SessionStatus | None, query: SessionStatusQuery) -> bool:
    if status is None or status.type != query.type:
        return False
    if isinstance(status, ClientSessionFinished) and isinstance(query, ClientFinishedSessionStatusQuery):
        return query.reasons is None or status.reason.type in query.reasons
    return True


def _status(store: Store, session: SessionRecord) -> SessionStatus | None:
    """Ended by its client, going on in this process, or unknown."""
    if session.finish is not None:
        return ClientSessionFinished(reason=_FINISHES[session.finish.reason], detail=session.finish.detail)
    return SessionActive() if store.sessions.is_open(session.session_id) else None


def _summary(store: Store, session: SessionRecord) -> SessionSummary:
    """A session, as a search returns it. One without a project has the project ""."""
    kept = [one for run in store.runs(session_id=session.session_id) for one in store.checkpoints(run.run_id)]
    return SessionSummary(
        session_id=session.session_id,
        created_at=session.created,
        owner=owner(),
        project_id=session.project_id or "",
        status=_status(store, session),
        checkpoints_count=len(kept),
        display_name=session.display_name,
        user_metadata=session.user_metadata,
        checkpoint_storage_bytes=sum(one.size_bytes for one in kept),
    )
