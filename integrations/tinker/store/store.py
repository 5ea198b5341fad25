"""`Store`: sessions, training runs and checkpoints below one folder."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from ....datums import disk
from ....datums.errors import CheckpointError, CheckpointExistsError, CheckpointNotFoundError, did_you_mean
from ....trainer.checkpoint.manifest import check_name, read_record
from ....trainer.checkpoint.places import locate
from . import names, places, records
from .names import KINDS, SCHEME, Kind, Name
from .records import CheckpointRecord, RunRecord, Stored
from .sessions import Sessions

#: Seconds between two writings of a run's last request.
_TOUCH_EVERY = 30.0
_RUN = "run.json"
_WRITTEN_BY: dict[Kind, str] = {
    "weights": "save_state",
    "sampler_weights": "save_weights_for_sampler",
    "external_weights": "save_weights_external",
}
#: By the kind in the manifest of lossbook's own checkpoints.
_KIND_OF: dict[object, Kind] = {"training": "weights", "weights": "sampler_weights"}
_log = logging.getLogger(__name__)


class Store:
    """Sessions, training runs and checkpoints below `root`; any number of stores and processes may share one root.

    `runs/RUN/run.json` says what a run trains, `runs/RUN/KIND/NAME` is a checkpoint with its record, and
    `sessions/SESSION` tells of the service clients. A checkpoint and its record come to their place together and last, so
    that what is listed is whole. One whose ttl is over is neither listed nor loaded, and the next write removes it.

    Methods raise CheckpointNotFoundError for names that are not there, CheckpointExistsError for those that are taken, and
    CheckpointError for all else; nothing has changed then.
    """

    def __init__(self, root: Path | str, *, now: Callable[[], datetime] = records.utc_now) -> None:
        self.root = Path(root).absolute()
        self._runs = self.root / "runs"
        self._now = now
        self._touched: dict[str, float] = {}
        self.sessions = Sessions(self.root / "sessions", now)

    # --- sessions and runs --------------------------------------------------------------------------------------------

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
    ) -> str:
        """Begin a training run; returns its id, SESSION:train:NUMBER, which is the training client's model id too.

        copy_of: the checkpoint that the run only holds a copy of.
        """
        with places.alone(self.sessions.folder(session_id)):
            taken = [names.number_of(run_id) for run_id in self._run_ids() if names.session_of(run_id) == session_id]
            run_id, now = names.run_id_of(session_id, max(taken, default=-1) + 1), self._now()
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
            with disk.new_folder(self._runs / names.run_folder(run_id)) as folder:
                disk.write_new(folder / _RUN, records.as_bytes(record))
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
        """The project of a run, which is its session's."""
        return self.sessions.get(names.session_of(run_id)).project_id

    def touch(self, run_id: str) -> None:
        """Note that a run was used now. Cheap enough for every call: it is written twice a minute at most."""
        clock = time.monotonic()
        if clock - self._touched.get(run_id, -_TOUCH_EVERY) >= _TOUCH_EVERY:
            self._touched[run_id] = clock
            folder = self._folder(run_id)
            with places.alone(folder):
                record = records.read(folder / _RUN, RunRecord)
                records.write(folder / _RUN, record.changed(last_request=max(record.last_request, self._now())))

    # --- checkpoints --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def saving(
        self,
        run_id: str,
        kind: Kind,
        name: str,
        *,
        overwrite: bool = False,
        ttl_seconds: int | None = None,
        user_metadata: Mapping[str, str] | None = None,
    ) -> Iterator[Path]:
        """A path for a checkpoint to be written to, `path.name` in `path.parent`; recorded when the block ends.

        What it is then called is `path_of(run_id, kind, name)`. The life of `ttl_seconds` begins at the end of the block.
        """
        run, where = self._folder(run_id), Name(run_id, names.kind_of(kind, str(kind)), check_name(name))
        records.expiry(ttl_seconds, self._now())
        metadata = None if user_metadata is None else dict(user_metadata)

        def record(size_bytes: int) -> CheckpointRecord:
            now = self._now()
            return CheckpointRecord.of(
                **vars(where),
                time=now,
                size_bytes=size_bytes,
                expires_at=records.expiry(ttl_seconds, now),
                user_metadata=metadata,
            )

        record(0)  # what is wrong with it is said before anything is written
        self.remove_expired()
        with places.filling(run, kind, name, overwrite=overwrite, record=record) as path:
            yield path

    def path_of(self, run_id: str, kind: Kind, name: str) -> str:
        """The `tinker://` path of a checkpoint."""
        return str(Name(run_id, kind, name))

    def locate(self, path: str, *, kind: Kind | None = None) -> Stored:
        """A checkpoint by its `tinker://` path, or by its folder, which need not be one of the store's.

        kind: what it must be. Raises CheckpointError where it is of another kind, CheckpointNotFoundError where there is no
        such run or name, or where its ttl is over.
        """
        stored = self._by_name(names.parsed(path), path) if path.startswith(SCHEME) else self._by_folder(path)
        if kind is not None and stored.kind != kind:
            raise CheckpointError(
                f"{path} is of kind {stored.kind}, and this call takes {kind}: give a checkpoint that "
                f"{_WRITTEN_BY[kind]} wrote"
            )
        return stored

    def checkpoints(self, run_id: str | None = None) -> list[CheckpointRecord]:
        """The checkpoints of a run, or of all runs, newest first. A damaged one is left out, with a warning."""
        now, listed = self._now(), []
        for folder in [self._folder(run_id)] if run_id is not None else map(self._folder, self._run_ids()):
            for record in self._records(folder):
                if not record.is_expired(now):
                    listed.append(record)
        return sorted(listed, key=lambda record: (record.time, record.path), reverse=True)

    def delete(self, path: str) -> None:
        """Remove a checkpoint from the disk."""
        with self._changing(path) as (folder, _):
            places.take_away(folder)
        self.remove_expired()

    def set_ttl(self, path: str, ttl_seconds: int | None) -> None:
        """Let a checkpoint's life end `ttl_seconds` from now, or never."""
        expires_at = records.expiry(ttl_seconds, self._now())
        with self._changing(path) as (folder, record):
            records.write(folder / places.RECORD, record.changed(expires_at=expires_at))

    def publish(self, path: str, public: bool) -> None:
        """Set a checkpoint's flag, which says nothing about who can read its folder. Raises CheckpointExistsError if it is so."""
        with self._changing(path) as (folder, record):
            if record.public == public:
                raise CheckpointExistsError(f"{path} is {'public' if public else 'private'} already")
            records.write(folder / places.RECORD, record.changed(public=public))

    def remove_expired(self) -> None:
        """Remove the checkpoints whose ttl is over."""
        for run_id in self._run_ids():
            folder = self._folder(run_id)
            for record in self._records(folder):
                if record.is_expired(self._now()):
                    with contextlib.suppress(CheckpointNotFoundError), places.alone(folder):
                        final = folder / record.kind / record.name
                        if places.record_of(final).is_expired(self._now()):  # nobody gave it a longer life meanwhile
                            places.take_away(final)

    # --- within -------------------------------------------------------------------------------------------------------

    def _folder(self, run_id: str) -> Path:
        folder = self._runs / names.run_folder(run_id)
        if not folder.is_dir():
            raise CheckpointNotFoundError(f"there is no training run {run_id!r} in {self.root}")
        return folder

    def _run_ids(self) -> list[str]:
        entries = sorted(self._runs.iterdir()) if self._runs.is_dir() else []
        return [run_id for entry in entries if (run_id := names.run_id_in(entry.name)) is not None]

    def _records(self, run: Path) -> Iterator[CheckpointRecord]:
        for kind in KINDS:
            for record in places.records_in(run / kind):
                if isinstance(record, CheckpointRecord):
                    yield record
                else:
                    _log.warning("left out of the list of checkpoints: %s", record)

    def _by_name(self, name: Name, path: str) -> Stored:
        run, now = self._folder(name.run_id), self._now()
        folder = run / name.kind / name.name
        try:
            record = places.record_of(folder)
        except CheckpointNotFoundError:
            there = [one.path for one in self._records(run) if not one.is_expired(now)]
            raise CheckpointNotFoundError(
                f"there is no checkpoint {path}; its run has {len(there) or 'none'}.{did_you_mean(str(name), there)}"
            ) from None
        if record.expires_at is not None and record.is_expired(now):
            raise CheckpointNotFoundError(
                f"{path} expired at {record.expires_at:%Y-%m-%d %H:%M:%S} UTC: it was saved with a ttl_seconds that is over"
            )
        return Stored(path, folder, name.kind, name.name, self.run(name.run_id), record)

    def _by_folder(self, path: str) -> Stored:
        folder = Path(os.path.realpath(path))
        inside = folder.relative_to(runs).parts if folder.is_relative_to(runs := os.path.realpath(self._runs)) else ()
        if len(inside) == 3 and inside[1] in KINDS and (run_id := names.run_id_in(inside[0])) is not None:
            return self._by_name(Name(run_id, names.kind_of(inside[1], path), check_name(inside[2])), path)
        if not os.path.lexists(folder):
            raise CheckpointNotFoundError(f"there is no checkpoint {path}: no such folder, and no {SCHEME} path")
        kind = read_record(locate(folder)).manifest.get("kind")
        if kind not in _KIND_OF:
            raise CheckpointError(f"{path} is a checkpoint of kind {kind!r}, which holds no model's weights")
        return Stored(path, folder, _KIND_OF[kind], folder.name)

    @contextlib.contextmanager
    def _changing(self, path: str) -> Iterator[tuple[Path, CheckpointRecord]]:
        """The folder and record of a checkpoint that nobody else changes meanwhile."""
        name = names.parsed(path)
        with places.alone(self._folder(name.run_id)):
            stored = self._by_name(name, path)
            if stored.record is not None:
                yield stored.folder, stored.record
