"""Sessions: one for each service client, with the sampling clients that it made."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from ....datums import disk
from ....datums.errors import CheckpointError, CheckpointNotFoundError
from . import names, records
from .places import alone
from .records import Finish, SamplerRecord, SessionRecord

_RECORD, _SAMPLERS = "session.json", "samplers.jsonl"
_log = logging.getLogger(__name__)
#: Sessions that this process began and nobody finished.
_open: set[str] = set()


class Sessions:
    """The sessions below `root`, which is the store's folder `sessions`."""

    def __init__(self, root: Path, now: Callable[[], datetime]) -> None:
        self.root = root
        self._now = now

    def new(
        self,
        *,
        user_metadata: Mapping[str, str] | None = None,
        project_id: str | None = None,
        display_name: str | None = None,
        session_id: str | None = None,
    ) -> str:
        """Begin a session; returns its id, which nobody can guess. session_id: one that `names.new_session_id` gave before."""
        session_id = names.new_session_id() if session_id is None else names.session_folder(session_id)
        record = SessionRecord.of(
            session_id=session_id,
            created=self._now(),
            user_metadata=None if user_metadata is None else dict(user_metadata),
            project_id=project_id,
            display_name=display_name,
        )
        records.write_folder(self.root / session_id, _RECORD, record)
        _open.add(session_id)
        return session_id

    def folder(self, session_id: str) -> Path:
        """A session's folder. Raises CheckpointNotFoundError where there is no such session."""
        folder = self.root / names.session_folder(session_id)
        if not folder.is_dir():
            raise CheckpointNotFoundError(f"there is no session {session_id!r} in {self.root}")
        return folder

    def get(self, session_id: str) -> SessionRecord:
        """A session's record."""
        return records.read(self.folder(session_id) / _RECORD, SessionRecord)

    def all(self) -> list[SessionRecord]:
        """All sessions, newest first."""
        sessions = []
        for path in sorted(self.root.glob(f"session-*/{_RECORD}")):
            try:
                sessions.append(records.read(path, SessionRecord))
            except CheckpointNotFoundError:
                continue
            except CheckpointError as error:
                _log.warning("left out of the list of sessions: %s", error)
        return sorted(sessions, key=lambda session: (session.created, session.session_id), reverse=True)

    def is_open(self, session_id: str) -> bool:
        """Whether this process began the session, and nobody finished it."""
        return session_id in _open

    def finish(
        self, session_id: str, reason: Literal["success", "errored", "interrupted"], detail: str | None = None
    ) -> None:
        """Note how a session ended; the first word counts."""
        _open.discard(session_id)
        self._change(
            session_id, lambda one: one if one.finish else one.changed(finish=Finish.of(reason=reason, detail=detail))
        )

    def assign_project(self, session_id: str, project_id: str) -> None:
        """Move a session, with all its runs, into a project."""
        self._change(session_id, lambda one: one.changed(project_id=project_id))

    def new_sampler(self, session_id: str, *, base_model: str, model_path: str | None = None) -> str:
        """Note a sampling client; returns its id, SESSION:sample:NUMBER."""
        folder = self.folder(session_id)
        with alone(folder):
            before = (folder / _SAMPLERS).read_bytes() if (folder / _SAMPLERS).is_file() else b""
            torn = "" if before.endswith(b"\n") or not before else "\n"  # by a dead writer
            number = before.count(b"\n") + len(torn)
            sampler_id = f"{session_id}:sample:{number}"
            record = SamplerRecord.of(sampler_id=sampler_id, base_model=base_model, model_path=model_path)
            disk.append(folder / _SAMPLERS, f"{torn}{record.model_dump_json()}\n")
        return sampler_id

    def samplers(self, session_id: str) -> list[SamplerRecord]:
        """The sampling clients of a session, in the order in which they were made."""
        path, samplers = self.folder(session_id) / _SAMPLERS, []
        for line in path.read_bytes().split(b"\n") if path.is_file() else ():
            with contextlib.suppress(ValidationError):  # a line that a dead writer did not finish
                samplers.append(SamplerRecord.model_validate_json(line))
        return samplers

    def sampler(self, sampler_id: str) -> SamplerRecord:
        """A sampling client by its id."""
        for sampler in self.samplers(sampler_id.partition(":")[0]):
            if sampler.sampler_id == sampler_id:
                return sampler
        raise CheckpointNotFoundError(f"there is no sampler {sampler_id!r}")

    def _change(self, session_id: str, change: Callable[[SessionRecord], SessionRecord]) -> None:
        folder = self.folder(session_id)
        with alone(folder):
            records.write(folder / _RECORD, change(records.read(folder / _RECORD, SessionRecord)))
