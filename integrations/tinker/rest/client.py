"""`RestClient`: training runs, checkpoints and sessions, with Tinker's calls."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime
from typing import Literal, Never

from ..futures import APIFuture
from ..process import Session
from ..settings import Settings, current
from ..store import RECORD, Store
from ..types import (
    AuditLogResponse,
    CheckpointsListResponse,
    CurrentCheckpointStorageUsageResponse,
    ExternalWeightsUrlsResponse,
    GetSamplerResponse,
    GetServerCapabilitiesResponse,
    GetSessionResponse,
    ListSessionsResponse,
    ModelID,
    ParsedCheckpointTinkerPath,
    SessionSearchRequest,
    SessionSearchResponse,
    TrainingRun,
    TrainingRunsResponse,
    WeightsInfoResponse,
    WhoamiResponse,
)
from . import described
from .admin import AdminClient
from .answers import answered, refused, twin
from .search import search

#: "owned" and "accessible" are the same in one process.
Scope = Literal["owned", "accessible"]


class RestClient:
    """Reads and changes what lies below the settings' root, or below that of the service client that made it.

    `base_url` and `api_key` have no effect: no server is asked. Answers are there at once, in futures; what is refused is
    raised by the future, as NotFoundError, ConflictError or BadRequestError. A path of another form is a ValueError at the call.
    Methods have the async twins that Tinker's have, `NAME_async`.
    """

    def __init__(
        self, _holder: Session | None = None, *, base_url: str | None = None, api_key: str | None = None
    ) -> None:
        self._holder = _holder
        self._settings: Settings = current() if _holder is None else _holder.settings
        self._store = Store(self._settings.root) if _holder is None else _holder.store

    def _admin(self) -> AdminClient:
        return AdminClient(self._holder)

    def get_telemetry(self) -> None:
        """None: nothing is reported to anyone."""

    @answered
    def get_server_capabilities(self) -> GetServerCapabilitiesResponse:
        """The base models that need no download."""
        return described.capabilities(self._settings)

    @answered
    def whoami(self) -> WhoamiResponse:
        """Who runs this process, by the name of the system's account."""
        return WhoamiResponse(user_urn=described.owner(), org_urn="lossbook:organization:local")

    # --- training runs ------------------------------------------------------------------------------------------------

    @answered
    def get_training_run(self, training_run_id: ModelID, access_scope: Scope = "owned") -> TrainingRun:
        """A run, with its last checkpoint of each kind."""
        return described.training_run(self._store, self._store.run(training_run_id))

    def get_training_run_by_tinker_path(
        self, tinker_path: str, access_scope: Scope = "owned"
    ) -> APIFuture[TrainingRun]:
        """The run of a checkpoint, whether that is there or not."""
        parsed = ParsedCheckpointTinkerPath.from_tinker_path(tinker_path)
        return self.get_training_run(parsed.training_run_id, access_scope)

    @answered
    def list_training_runs(
        self, limit: int = 20, offset: int = 0, access_scope: Scope = "owned", project_id: str | None = None
    ) -> TrainingRunsResponse:
        """Runs, the latest request first; of one project if it is given."""
        records, cursor = described.page(self._store.runs(project_id=project_id), limit, offset)
        runs = [described.training_run(self._store, record) for record in records]
        return TrainingRunsResponse(training_runs=runs, cursor=cursor)

    # --- checkpoints --------------------------------------------------------------------------------------------------

    @answered
    def get_weights_info_by_tinker_path(self, tinker_path: str) -> WeightsInfoResponse:
        """What a model must be like to load a checkpoint; a plain folder that lossbook's clients wrote is taken too."""
        return described.weights_info(self._store.locate(tinker_path))

    @answered
    def list_checkpoints(self, training_run_id: ModelID) -> CheckpointsListResponse:
        """The checkpoints of a run, newest first."""
        records = self._store.checkpoints(training_run_id)
        return CheckpointsListResponse(checkpoints=[described.checkpoint(record) for record in records])

    @answered
    def list_user_checkpoints(self, limit: int = 100, offset: int = 0) -> CheckpointsListResponse:
        """The checkpoints of all runs, newest first."""
        records, cursor = described.page(self._store.checkpoints(), limit, offset)
        return CheckpointsListResponse(checkpoints=[described.checkpoint(record) for record in records], cursor=cursor)

    @answered
    def delete_checkpoint(self, training_run_id: ModelID, checkpoint_id: str) -> None:
        """Remove a checkpoint from the disk; `checkpoint_id` is KIND/NAME."""
        self._store.delete(f"tinker://{training_run_id}/{checkpoint_id}")

    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[None]:
        """Remove a checkpoint from the disk."""
        parsed = ParsedCheckpointTinkerPath.from_tinker_path(tinker_path)
        return self.delete_checkpoint(parsed.training_run_id, parsed.checkpoint_id)

    @answered
    def set_checkpoint_ttl_from_tinker_path(self, tinker_path: str, ttl_seconds: int | None) -> None:
        """Let a checkpoint's life end `ttl_seconds` from now, 3600 to ten years, or never."""
        self._store.set_ttl(tinker_path, ttl_seconds)

    @answered
    def publish_checkpoint_from_tinker_path(self, tinker_path: str) -> None:
        """Mark a checkpoint as public. The mark alone changes: who can read the folder can read the checkpoint."""
        self._store.publish(tinker_path, True)

    @answered
    def unpublish_checkpoint_from_tinker_path(self, tinker_path: str) -> None:
        """Take the mark off again."""
        self._store.publish(tinker_path, False)

    def copy_weights(
        self,
        path: str,
        destination_project_id: str | None = None,
        *,
        ttl_seconds: int | None = None,
        weights_access_token: str | None = None,
    ) -> APIFuture[str]:
        """Copy a checkpoint into a run of its own, in a project; returns the copy's path. Its bytes are copied too.

        destination_project_id: by default the environment's `TINKER_PROJECT_ID`; a ValueError without both.
        weights_access_token has no effect: there are no other accounts.
        """
        project_id = destination_project_id or os.environ.get("TINKER_PROJECT_ID")
        if not project_id:
            raise ValueError("copy_weights needs destination_project_id, or TINKER_PROJECT_ID in the environment")
        return self._copy(path, project_id, ttl_seconds)

    @answered
    def _copy(self, path: str, project_id: str, ttl_seconds: int | None) -> str:
        return self._store.copy(path, project_id=project_id, ttl_seconds=ttl_seconds)

    @answered
    def get_external_weights_urls(self, tinker_path: str) -> ExternalWeightsUrlsResponse:
        """The files of exported weights, as file:// addresses, which hold as long as the checkpoint."""
        stored = self._store.locate(tinker_path, kind="external_weights")
        files = sorted(path for path in stored.folder.rglob("*") if path.is_file() and path.name != RECORD)
        expires = None if stored.record is None else stored.record.expires_at
        return ExternalWeightsUrlsResponse(
            urls={path.relative_to(stored.folder).as_posix(): path.as_uri() for path in files},
            expires=expires or datetime.max.replace(tzinfo=UTC),
        )

    # --- sessions -----------------------------------------------------------------------------------------------------

    @answered
    def get_session(self, session_id: str, access_scope: Scope = "owned") -> GetSessionResponse:
        """The runs and samplers of a session, in the order in which they were made."""
        session = self._store.sessions.get(session_id)
        runs = sorted(self._store.runs(session_id=session_id), key=lambda run: run.created)
        return GetSessionResponse(
            training_run_ids=[run.run_id for run in runs],
            sampler_ids=[sampler.sampler_id for sampler in self._store.sessions.samplers(session_id)],
            user_metadata=session.user_metadata,
            display_name=session.display_name,
        )

    @answered
    def list_sessions(self, limit: int = 20, offset: int = 0, access_scope: Scope = "owned") -> ListSessionsResponse:
        """Ids of sessions, newest first."""
        sessions, _ = described.page(self._store.sessions.all(), limit, offset)
        return ListSessionsResponse(sessions=[session.session_id for session in sessions])

    @answered
    def search_sessions(self, request: SessionSearchRequest) -> SessionSearchResponse:
        """Sessions by id, name, project, metadata or state, newest first."""
        return search(self._store, request)

    @answered
    def assign_session_project(self, session_id: str, project_id: str) -> None:
        """Move a session, with its runs, into a project, which is a name and no more."""
        self._store.sessions.assign_project(session_id, project_id)

    @answered
    def get_sampler(self, sampler_id: str) -> GetSamplerResponse:
        """The model that a sampling client samples from."""
        sampler = self._store.sessions.sampler(sampler_id)
        return GetSamplerResponse(sampler_id=sampler_id, base_model=sampler.base_model, model_path=sampler.model_path)

    @answered
    def export_session_trace(self, session_id: str) -> str:
        """Refused: requests are not recorded."""
        raise refused(
            "export_session_trace, a trace of a service's requests,",
            "torch.profiler around the loop writes one of this process, which ui.perfetto.dev shows too",
        )

    # --- what AdminClient has -----------------------------------------------------------------------------------------

    def get_audit_log(
        self,
        event_type: Literal["all", "checkpoints", "projects", "teams", "organizations"] = "all",
        day: date | None = None,
    ) -> APIFuture[AuditLogResponse]:
        """As `AdminClient.get_audit_log`."""
        return self._admin().get_audit_log(event_type, day)

    def get_billing_usage(self, starting_on: datetime | str, ending_before: datetime | str) -> APIFuture[Never]:
        """As `AdminClient.get_billing_usage`."""
        return self._admin().get_billing_usage(starting_on, ending_before)

    def get_current_checkpoint_storage_usage(
        self, project_id: str | None = None
    ) -> APIFuture[CurrentCheckpointStorageUsageResponse]:
        """As `AdminClient.get_current_checkpoint_storage_usage`."""
        return self._admin().get_current_checkpoint_storage_usage(project_id)

    # --- the older names for asyncio ----------------------------------------------------------------------------------

    get_training_run_async = twin(get_training_run)
    get_training_run_by_tinker_path_async = twin(get_training_run_by_tinker_path)
    list_training_runs_async = twin(list_training_runs)
    list_checkpoints_async = twin(list_checkpoints)
    get_external_weights_urls_async = twin(get_external_weights_urls)
    delete_checkpoint_async = twin(delete_checkpoint)
    delete_checkpoint_from_tinker_path_async = twin(delete_checkpoint_from_tinker_path)
    get_audit_log_async = twin(get_audit_log)
    copy_weights_async = twin(copy_weights)
    publish_checkpoint_from_tinker_path_async = twin(publish_checkpoint_from_tinker_path)
    unpublish_checkpoint_from_tinker_path_async = twin(unpublish_checkpoint_from_tinker_path)
    set_checkpoint_ttl_from_tinker_path_async = twin(set_checkpoint_ttl_from_tinker_path)
    list_user_checkpoints_async = twin(list_user_checkpoints)
    get_session_async = twin(get_session)
    list_sessions_async = twin(list_sessions)
    assign_session_project_async = twin(assign_session_project)
    export_session_trace_async = twin(export_session_trace)
    get_sampler_async = twin(get_sampler)
    get_billing_usage_async = twin(get_billing_usage)
    get_current_checkpoint_storage_usage_async = twin(get_current_checkpoint_storage_usage)
