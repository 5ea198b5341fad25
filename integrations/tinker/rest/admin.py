"""`AdminClient`: what an organization's administrators ask the hosted service."""

from __future__ import annotations

from collections import Counter
from datetime import date, datetime
from typing import Literal, Never

from ..process import Session
from ..settings import current
from ..store import Store
from ..types import AuditLogResponse, CurrentCheckpointStorageUsageItem, CurrentCheckpointStorageUsageResponse
from . import described
from .answers import answered, refused, twin


class AdminClient:
    """There is no organization here: what is stored is answered from the folder, bills and audits are refused.

    `base_url` and `api_key` have no effect: no server is asked.
    """

    def __init__(
        self, _holder: Session | None = None, *, base_url: str | None = None, api_key: str | None = None
    ) -> None:
        self._store = Store(current().root) if _holder is None else _holder.store

    def get_telemetry(self) -> None:
        """None: nothing is reported to anyone."""

    @answered
    def get_audit_log(
        self,
        event_type: Literal["all", "checkpoints", "projects", "teams", "organizations"] = "all",
        day: date | None = None,
    ) -> AuditLogResponse:
        """Refused: nobody keeps a log of who reads the folder."""
        raise refused("get_audit_log", "list_user_checkpoints and search_sessions say what is there, and since when")

    @answered
    def get_billing_usage(self, starting_on: datetime | str, ending_before: datetime | str) -> Never:
        """Refused: nothing is billed, so nothing is counted for bills."""
        raise refused(
            "get_billing_usage", "Nothing here costs money; get_current_checkpoint_storage_usage counts bytes"
        )

    @answered
    def get_current_checkpoint_storage_usage(
        self, project_id: str | None = None
    ) -> CurrentCheckpointStorageUsageResponse:
        """Checkpoints and their bytes by project, or of one project. They have no price."""
        count: Counter[str | None] = Counter()
        size: Counter[str | None] = Counter()
        for record in self._store.checkpoints():
            project = self._store.project_of(record.run_id)
            count[project] += 1
            size[project] += record.size_bytes
        return CurrentCheckpointStorageUsageResponse(
            data=[
                CurrentCheckpointStorageUsageItem(
                    project_id=project,
                    org_user_urn=described.owner(),
                    checkpoint_count=count[project],
                    size_bytes=size[project],
                    size_gigabytes=size[project] / 1e9,
                )
                for project in sorted(count, key=str)
                if project_id in (None, project)
            ]
        )

    get_audit_log_async = twin(get_audit_log)
    get_billing_usage_async = twin(get_billing_usage)
    get_current_checkpoint_storage_usage_async = twin(get_current_checkpoint_storage_usage)
