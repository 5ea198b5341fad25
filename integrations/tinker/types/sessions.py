"""Searching sessions: whose, in which state, and what is returned."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from .base import BaseModel, StrictBase

# --- whose ------------------------------------------------------------------------------------------------------------


class OwnSearchOwner(StrictBase):
    """The caller's own sessions."""

    type: Literal["own"] = "own"


class AccessibleSearchOwner(StrictBase):
    """Everybody's sessions."""

    type: Literal["accessible"] = "accessible"


class UserSearchOwner(StrictBase):
    """The sessions of 1 to 10 users."""

    type: Literal["user"] = "user"
    owner_urns: list[str] = Field(min_length=1, max_length=10)


SearchOwner = OwnSearchOwner | AccessibleSearchOwner | UserSearchOwner

# --- in which state ---------------------------------------------------------------------------------------------------

ClientSessionFinishReasonType = Literal["success", "errored", "interrupted"]


class ActiveSessionStatusQuery(StrictBase):
    """Sessions that go on."""

    type: Literal["active"] = "active"


class CancelledSessionStatusQuery(StrictBase):
    """Sessions that somebody has ended."""

    type: Literal["cancelled"] = "cancelled"


class FailedSessionStatusQuery(StrictBase):
    """Sessions that failed."""

    type: Literal["failed"] = "failed"


class ClientFinishedSessionStatusQuery(StrictBase):
    """Sessions whose client ended them, for one of the reasons if any are given."""

    type: Literal["client_finished"] = "client_finished"
    reasons: list[ClientSessionFinishReasonType] | None = Field(default=None, min_length=1)


SessionStatusQuery = (
    ActiveSessionStatusQuery | CancelledSessionStatusQuery | FailedSessionStatusQuery | ClientFinishedSessionStatusQuery
)


class SessionFailedRequestReason(BaseModel):
    """A request that failed."""

    type: Literal["request"] = "request"
    request_id: str
    request_type: str


class SessionFailedTrainingRunReason(BaseModel):
    """A training run that failed."""

    type: Literal["training_run"] = "training_run"
    training_run_id: str


class SessionFailedSamplingSessionReason(BaseModel):
    """A sampler that failed."""

    type: Literal["sampling_session"] = "sampling_session"
    sampling_session_id: str


SessionFailedReason = Annotated[
    SessionFailedRequestReason | SessionFailedTrainingRunReason | SessionFailedSamplingSessionReason,
    Field(discriminator="type"),
]


class SessionFailed(BaseModel):
    """A session that failed, and through what."""

    type: Literal["failed"] = "failed"
    category: Literal["user", "internal"]
    reason: SessionFailedReason
    message: str


class SessionCancelled(BaseModel):
    """A session that somebody has ended."""

    type: Literal["cancelled"] = "cancelled"
    detail: str | None = None


class ClientSessionFinishSuccess(BaseModel):
    """The client's program ended well."""

    type: Literal["success"] = "success"


class ClientSessionFinishErrored(BaseModel):
    """The client's program ended with an error."""

    type: Literal["errored"] = "errored"


class ClientSessionFinishInterrupted(BaseModel):
    """The client's program was stopped."""

    type: Literal["interrupted"] = "interrupted"


ClientSessionFinishReason = Annotated[
    ClientSessionFinishSuccess | ClientSessionFinishErrored | ClientSessionFinishInterrupted,
    Field(discriminator="type"),
]


class ClientSessionFinished(BaseModel):
    """A session that its client ended."""

    type: Literal["client_finished"] = "client_finished"
    reason: ClientSessionFinishReason
    detail: str | None = None


class SessionActive(BaseModel):
    """A session that goes on."""

    type: Literal["active"] = "active"


SessionStatus = Annotated[
    SessionFailed | SessionCancelled | ClientSessionFinished | SessionActive, Field(discriminator="type")
]

# --- the search -------------------------------------------------------------------------------------------------------


class SessionSearchCursor(BaseModel):
    """Where the next part of a search begins."""

    last_created_at: AwareDatetime
    last_session_id: str


class SessionSearchRequest(StrictBase):
    """A search; `RestClient.search_sessions` takes its fields as arguments."""

    session_id: str | None = None
    project_ids: list[str] | None = None
    user_metadata: dict[str, str] = Field(default_factory=dict)
    display_name: str | None = Field(default=None, min_length=1)
    owner: SearchOwner = OwnSearchOwner()
    statuses: list[SessionStatusQuery] | None = Field(default=None, min_length=1)
    limit: int = Field(default=50, ge=1, le=200)
    cursor: SessionSearchCursor | None = None


class SessionSummary(BaseModel):
    """A session. `status` is None where it has neither ended nor is known to go on."""

    session_id: str
    created_at: datetime
    owner: str
    project_id: str
    status: SessionStatus | None = None
    checkpoints_count: int
    display_name: str | None = None
    user_metadata: dict[str, str] | None = None
    checkpoint_storage_bytes: int | None = None


class SessionSearchResponse(BaseModel):
    """Part of a search's sessions, newest first. `next_cursor` is None at the end."""

    sessions: list[SessionSummary]
    next_cursor: SessionSearchCursor | None = None
