"""`Store`: sessions, training runs and checkpoints below one folder."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ....datums.errors import CheckpointError, CheckpointExistsError, CheckpointNotFoundError, did_you_mean
from ....trainer.checkpoint.manifest import check_name, read_record
from ....trainer.checkpoint.places import locate
from . import names, places, records
from .names import KINDS, SCHEME, Kind, Name
from .records import CheckpointRecord, Stored
from .runs import Runs

_WRITTEN_BY: dict[Kind, str] = {
    "weights": "save_state",
    "sampler_weights": "save_weights_for_sampler",
    "external_weights": "save_weights_external",
}
#: What of a run says which model it trains.
_OF_MODEL = {"base_model", "is_lora", "lora_rank", "train_mlp", "train_attn", "train_unembed", "user_metadata"}
#: By the kind in the manifest of lossbook's own checkpoints.
_KIND_OF: dict[object, Kind] = {"training": "weights", "weights": "sampler_weights"}
_log = logging.getLogger(__name__)


class Store(Runs):
    """Sessions, training runs and checkpoints below `root`; any number of stores and processes may share one root.

    `runs/RUN/run.json` says what a run trains, `runs/RUN/KIND/NAME` is a checkpoint with its record, and
    `sessions/SESSION` tells of the service clients. A checkpoint and its record come to their place together and last, so
    that what is listed is whole. One whose ttl is over is neither listed nor loaded, and the next write removes it.

    Methods raise CheckpointNotFoundError for names that are not there, CheckpointExistsError for those that are taken, and
    CheckpointError for all else; nothing has changed then.
    """

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

    def copy(self, path: str, *, project_id: str | None = None, ttl_seconds: int | None = None) -> str:
        """Copy a checkpoint into a run of its own, in a new session of a project; returns the copy's path.

        The copy keeps kind, name and metadata, and neither the flag `public` nor the time of life.
        """
        stored = self.locate(path)
        if stored.run is None or stored.record is None:
            raise CheckpointError(f"{path} is no run's checkpoint: copy its folder yourself")
        records.expiry(ttl_seconds, self._now())
        settings = stored.run.model_dump(include=_OF_MODEL)
        run_id = self.new_run(self.new_session(project_id=project_id), copy_of=stored.record.path, **settings)
        metadata = stored.record.user_metadata
        with self.saving(run_id, stored.kind, stored.name, ttl_seconds=ttl_seconds, user_metadata=metadata) as target:
            places.copy_files(stored.folder, target)
        return self.path_of(run_id, stored.kind, stored.name)

    def remove_expired(self) -> None:
        """Remove the checkpoints whose ttl is over. One that cannot be removed now stays, unlisted, with a warning."""
        for folder in map(self._folder, self._run_ids()):
            for record in self._records(folder):
                if record.is_expired(self._now()):
                    self._remove_if_expired(folder, folder / record.kind / record.name)

    # --- within -------------------------------------------------------------------------------------------------------

    def _remove_if_expired(self, run: Path, final: Path) -> None:
        try:
            with contextlib.suppress(CheckpointNotFoundError), places.alone(run):
                if places.record_of(final).is_expired(self._now()):  # nobody gave it a longer life meanwhile
                    places.take_away(final)
        except CheckpointError as error:
            _log.warning("an expired checkpoint stays for now: %s", error)

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
        folder, runs = Path(os.path.realpath(path)), Path(os.path.realpath(self._runs))
        if folder.is_relative_to(runs):
            run_id, kind, name = self._parts(folder.relative_to(runs), path)
            return self._by_name(Name(run_id, kind, name), path)
        if not os.path.lexists(folder):
            raise CheckpointNotFoundError(f"there is no checkpoint {path}: no such folder, and no {SCHEME} path")
        kind = read_record(locate(folder)).manifest.get("kind")
        if kind not in _KIND_OF:
            raise CheckpointError(f"{path} is a checkpoint of kind {kind!r}, which holds no model's weights")
        return Stored(path, folder, _KIND_OF[kind], folder.name)

    def _parts(self, inside: Path, path: str) -> tuple[str, Kind, str]:
        """Run, kind and name of a checkpoint's folder below `runs`. Raises CheckpointNotFoundError for any other."""
        run, kind, name = inside.parts if len(inside.parts) == 3 else ("", "", "")
        run_id = names.run_id_in(run)
        if run_id is None or kind not in KINDS:
            raise CheckpointNotFoundError(
                f"{path} is no checkpoint's folder, which is RUN/KIND/NAME below {self._runs}"
            )
        return run_id, names.kind_of(kind, path), check_name(name)

    @contextlib.contextmanager
    def _changing(self, path: str) -> Iterator[tuple[Path, CheckpointRecord]]:
        """The folder and record of a checkpoint that nobody else changes meanwhile."""
        name = names.parsed(path)
        with places.alone(self._folder(name.run_id)):
            stored = self._by_name(name, path)
            if stored.record is not None:
                yield stored.folder, stored.record
