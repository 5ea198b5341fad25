"""Training runs: which model each trains, and in which session."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from ....datums.errors import CheckpointError, CheckpointExistsError, CheckpointNotFoundError
from . import names, places, records
from .records import RunRecord
from .sessions import Sessions

#: Seconds between two writings of a run's last request.
_TOUCH_EVERY = 30.0
_RUN = "run.json"
_log = logging.getLogger(__name__)


class Runs:
    """The sessions and training runs below `root`."""

    def __init__(self, root: Path | str, *, now: Callable[[], datetime] = records.utc_now) -> None:
        self.root = Path(root).absolute()
        self._runs = self.root / "runs"
        self._now = now
        self._touched: dict[str, float] = {}
        self.sessions = Sessions(self.root / "sessions", now)

    def new_session(
        self,
        *,
        user_metadata: Mapping[str, str] | None = None,
        project_id: str | None = None,
        display_name: str | None = None,
    ) -> str:
        """Begin a session; returns its id. `sessions` has what else there is to sessions and samplers."""
        return self.sessions.new(user_metadata=user_metadata, project_id=project_id, display_name=display_name)

    def new_run(
        self,
        session_id: str,
        *,
        base_model: str,
        is_lora: bool = True,
        lora_rank: int | None = None,
        train_mlp: bool | None = None,
        train_attn: bool | None = None,
        train_unembed: bool | None = None,
        user_metadata: Mapping[str, str] | None = None,
        copy_of: str | None = None,
        number: int | None = None,
    ) -> str:
        """Begin a training run; returns its id, SESSION:train:NUMBER, which is the training client's model id too.

        copy_of: the checkpoint that the run only holds a copy of.
        number: 0 to 999999999; by default the one after the session's highest. Raises CheckpointExistsError where a run of
        the session has it, and CheckpointError where it cannot be a number.
        """
        with places.alone(self.sessions.folder(session_id)):
            run_id, now = self._new_id(session_id, number), self._now()
            record = RunRecord.of(
                run_id=run_id,
                session_id=session_id,
                created=now,
                last_request=now,
                base_model=base_model,
                is_lora=is_lora,
                lora_rank=lora_rank,
                train_mlp=train_mlp,
                train_attn=train_attn,
                train_unembed=train_unembed,
                user_metadata=None if user_metadata is None else dict(user_metadata),
                copy_of=copy_of,
            )
            records.write_folder(self._runs / names.run_folder(run_id), _RUN, record)
        return run_id

    def run(self, run_id: str) -> RunRecord:
        """A run's record."""
        record = records.read(self._folder(run_id) / _RUN, RunRecord)
        if record.run_id != run_id:
            raise CheckpointError(
                f"{self._folder(run_id)} is a copy of run {record.run_id}: give it its own name again"
            )
        return record

    def runs(self, *, session_id: str | None = None, project_id: str | None = None) -> list[RunRecord]:
        """Runs, the latest request first; of one session, or of one project."""
        runs = []
        for run_id in self._run_ids():
            if session_id is not None and names.session_of(run_id) != session_id:
                continue
            try:
                if project_id is None or self.project_of(run_id) == project_id:
                    runs.append(self.run(run_id))
            except CheckpointError as error:
                _log.warning("left out of the list of runs: %s", error)
        return sorted(runs, key=lambda run: (run.last_request, run.run_id), reverse=True)

    def project_of(self, run_id: str) -> str | None:
        """The project of a run, which is its session's; None where that has none, or is gone."""
        try:
            return self.sessions.get(names.session_of(run_id)).project_id
        except CheckpointNotFoundError:
            return None

    def note_use(self, run_id: str) -> None:
        """Note that a run was used now. Cheap enough for every call: it is written twice a minute at most."""
        clock = time.monotonic()
        if clock - self._touched.get(run_id, -_TOUCH_EVERY) >= _TOUCH_EVERY:
            self._touched[run_id] = clock
            folder = self._folder(run_id)
            with places.alone(folder):
                record = records.read(folder / _RUN, RunRecord)
                records.write(folder / _RUN, record.changed(last_request=max(record.last_request, self._now())))

    def _new_id(self, session_id: str, number: int | None) -> str:
        """The id of a run that is about to begin. The caller is alone in the session's folder."""
        taken = {names.number_of(run_id) for run_id in self._run_ids() if names.session_of(run_id) == session_id}
        if number is None:
            number = max(taken, default=-1) + 1
        run_id = names.run_id_of(session_id, number)
        if type(number) is not int or names.run_id_in(run_id) is None:
            raise CheckpointError(f"a training run's number is a whole number from 0 to 999999999, not {number!r}")
        if number in taken:
            raise CheckpointExistsError(f"there is a training run {run_id} already: choose another number, or none")
        return run_id

    def _folder(self, run_id: str) -> Path:
        folder = self._runs / names.run_folder(run_id)
        if not folder.is_dir():
            raise CheckpointNotFoundError(f"there is no training run {run_id!r} in {self.root}")
        return folder

    def _run_ids(self) -> list[str]:
        entries = sorted(self._runs.iterdir()) if self._runs.is_dir() else []
        return [run_id for entry in entries if (run_id := names.run_id_in(entry.name)) is not None]
