"""Folders of checkpoints: filled aside, put into their place with their record, and taken away, each in one step.

A kind of checkpoint of a run has a folder. `NAME` in it is a checkpoint and its record; `.NAME.tmp-<id>` is being filled, or
goes away; `.NAME.old-<id>` gives way to another. A program that dies leaves these, and the next writer removes them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from ....datums import disk
from ....datums.errors import CheckpointError, CheckpointExistsError, CheckpointNotFoundError
from ....trainer.checkpoint.manifest import is_name, read_record
from ....trainer.checkpoint.places import among_writers, check_free, leftovers, locate, move_into_place, settle
from .names import run_folder
from .records import CheckpointRecord, as_bytes, read

try:
    import fcntl
except ImportError:  # Windows: one process at a time
    fcntl = None

RECORD = "tinker.json"
_THREADS = threading.Lock()


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other threads and processes out of this block, for the same folder; never one inside another."""
    if fcntl is None:
        with _THREADS:
            yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a network file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone would leave it to a child that was forked meanwhile
        os.close(descriptor)


def record_of(folder: Path) -> CheckpointRecord:
    """The record of the checkpoint in `folder`. Raises CheckpointNotFoundError without one, CheckpointError if damaged.

    A copy that a dead writer had set aside is put back first.
    """
    record = read(locate(folder) / RECORD, CheckpointRecord)
    own = (run_folder(record.run_id), record.kind, record.name)
    if own != folder.parts[-3:]:  # it was copied by hand, or the file system takes Final for final
        raise CheckpointNotFoundError(f"there is no checkpoint {folder}: the folder is that of {record.path}")
    return record


def records_in(root: Path) -> Iterator[CheckpointRecord | CheckpointError]:
    """Each record of the checkpoints in a folder, or why it cannot be read."""
    names = {name for name, kind, _ in leftovers(root) if kind == "old"}
    names.update(entry.name for entry in (root.iterdir() if root.is_dir() else ()) if is_name(entry.name))
    for name in sorted(names):
        try:
            yield record_of(root / name)
        except CheckpointNotFoundError:  # removed meanwhile, or never whole
            continue
        except CheckpointError as error:
            yield error


@contextlib.contextmanager
def filling(
    run: Path, kind: str, name: str, *, overwrite: bool, record: Callable[[int], CheckpointRecord]
) -> Iterator[Path]:
    """A path to write a checkpoint to, a folder called `name`; when the block ends it is put in its place with its record.

    run: the run's folder. record: from the checkpoint's size in bytes. Raises CheckpointExistsError where the name is taken,
    before the block and after it, and CheckpointError where the block left no whole checkpoint or the disk fails; then what
    was there before is there, and nothing else.
    """
    final = run / kind / name
    with contextlib.ExitStack() as held:
        with _told(final):
            held.enter_context(among_writers(final.parent))
            _check_free(final, overwrite)
            scratch = _aside(final)
            disk.make_folder(scratch)
        held.callback(disk.remove, scratch)
        yield scratch / name
        with _told(final):
            _seal(scratch / name, record, is_foreign=kind == "external_weights")
            with alone(run):
                _check_free(final, overwrite)
                replaced = move_into_place(scratch / name, final, overwrite)
            settle(final, replaced)


def take_away(final: Path) -> None:
    """Remove a checkpoint: it loses its name in one step. The caller is alone in the run's folder."""
    with _told(final):
        locate(final)
        old = [folder for name, kind, folder in leftovers(final.parent) if (name, kind) == (final.name, "old")]
        for folder in [*old, final]:  # the old ones first, else a reader would put one back
            aside = _aside(final)
            with contextlib.suppress(FileNotFoundError):  # whoever set it aside was quicker
                disk.rename(folder, aside)
            disk.sync_folder(final.parent)
            disk.remove(aside)


def copy_files(source: Path, target: Path) -> None:
    """Copy a checkpoint's files, but for its record, into a folder that is made; each is flushed to the disk."""
    with _told(target):
        for path in sorted(source.rglob("*")):
            if path.is_file() and not path.is_symlink() and path != source / RECORD:
                copy = target / path.relative_to(source)
                disk.make_folder(copy.parent)
                with disk.writing(copy), path.open("rb") as old, open(copy, "xb") as new:
                    shutil.copyfileobj(old, new, 2**24)
                disk.sync(copy)


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _seal(folder: Path, record: Callable[[int], CheckpointRecord], *, is_foreign: bool) -> None:
    """Write the record of a checkpoint that is whole, the last of its files."""
    if not is_foreign:
        read_record(folder)
    elif not folder.is_dir() or not any(folder.iterdir()):
        raise CheckpointError(f"nothing was written to {folder}")
    disk.write_new(folder / RECORD, as_bytes(record(size_of(folder))))
    disk.sync_folder(folder)


def _check_free(final: Path, overwrite: bool) -> None:
    if overwrite:
        return check_free(final, overwrite)
    with contextlib.suppress(CheckpointError):
        locate(final)
    if os.path.lexists(final):
        raise CheckpointExistsError(
            f"{final.parent.name}/{final.name} exists already. Choose another name, or delete it first "
            "(RestClient.delete_checkpoint_from_tinker_path)"
        )


def _aside(final: Path) -> Path:
    return final.with_name(f".{final.name}.tmp-{uuid.uuid4().hex}")


@contextlib.contextmanager
def _told(final: Path) -> Iterator[None]:
    """Turn what the disk raises into a CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{final.parent.name}/{final.name} could not be written or removed in {final.parent}: {error}. Free some space, "
            "or choose another folder for checkpoints"
        ) from error
