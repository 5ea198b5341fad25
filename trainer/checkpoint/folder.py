"""Checkpoint folders, written so that each is complete or does not exist.

A checkpoint `step-10` is a folder. It is written as `.step-10.tmp-<id>`, flushed to the disk, and renamed. To replace one,
the old folder is renamed to `.step-10.old-<id>`, the new one takes its name, and the old one is deleted; if a program dies
between the two renames, the next reader moves the old one back. Names that begin with a dot are never read as checkpoints,
and the next writer removes what dead writers left. No name is locked: of two writers of one name the first succeeds, and
the other is refused or, with `overwrite`, replaces it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ...datums import disk
from ...datums.errors import CheckpointError
from .files import (
    MANIFEST_NAME,
    check_contents,
    check_name,
    fill_folder,
    is_name,
    load_tensors,
    read_record,
    reading,
    refuse_file,
    verified,
)

try:
    import fcntl
except ImportError:  # Windows: leftovers of dead writers cannot be told from work in progress, and stay
    fcntl = None

__all__ = ["Checkpoint", "check_name", "latest_checkpoint", "read_checkpoint", "write_checkpoint"]

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old)-[0-9a-f]{32}")
_TAKEN = "Choose another name, or pass overwrite=True"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: its `tensors[key][name]`, its manifest, and the versions of the libraries that wrote it."""

    path: Path
    manifest: dict[str, Any]
    tensors: dict[str, dict[str, torch.Tensor]]
    versions: dict[str, str | None] = field(default_factory=dict)


def write_checkpoint(
    root: Path,
    name: str,
    *,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    manifest: Mapping[str, Any],
    extra_files: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `root/name` with `<key>.safetensors` for each entry of `tensors`, and return its path.

    `manifest` must be JSON (string keys, lists, no NaN), and is read back unchanged; a number `step` in it orders
    checkpoints. Raises CheckpointError for a bad name, a name that exists (unless `overwrite`), values that cannot be
    stored, and when the disk is full or cannot be written; then `root` holds what it held before.
    """
    root = Path(root)
    final = root / check_name(name)
    plain = check_contents(tensors, manifest, extra_files or {})
    try:
        with _among_writers(root):
            _check_free(final, overwrite)
            temporary = root / f".{name}.tmp-{uuid.uuid4().hex}"
            try:
                fill_folder(temporary, tensors, plain, extra_files or {})
                replaced = _move_into_place(temporary, final, overwrite)
            finally:
                disk.remove(temporary)
            _settle(final, replaced)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {name!r} could not be written to {root}: {error}. What was there before is untouched. "
            "Free some space or choose a folder that can be written, and save again"
        ) from error
    return final


def read_checkpoint(path: Path, *, names: Sequence[str] | None = None) -> Checkpoint:
    """Read the tensors of the keys in `names`; each file is verified before it is parsed.

    By default all tensors are read, and all other files of the checkpoint are verified too. Raises CheckpointError, with
    the file and the remedy, where anything is missing, damaged, unsafe or of another format.
    """
    path = Path(path)
    patience = 20
    while True:  # repeated only where a writer replaces the checkpoint meanwhile
        folder = _locate(path)
        before = _identity(folder)
        try:
            return _read(folder, names)
        except CheckpointError:
            between_renames = before is None and any(name == path.name for name, _, _ in _leftovers(path.parent))
            patience -= 1
            if patience == 0 or (before == _identity(folder) and not between_renames):
                raise
            time.sleep(0.01)


def latest_checkpoint(root: Path, *, prefix: str = "") -> Path | None:
    """The checkpoint in `root` with the greatest step in its manifest, of equals the latest; None if there is none.

    All its files are verified. Damaged checkpoints are skipped, with a warning that names them.
    """
    root, damaged, readable = Path(root), [], []
    for name in _names(root):
        if not name.startswith(prefix):
            continue
        try:
            folder = _locate(root / name)
            readable.append((read_record(folder), folder))
        except CheckpointError as error:
            damaged.append(str(error))
    chosen = None
    for record, folder in sorted(readable, key=lambda pair: pair[0].order(), reverse=True):
        try:
            for file in record.files:
                verified(folder, file, record.files)
        except CheckpointError as error:
            damaged.append(str(error))
        else:
            chosen = folder
            break
    if damaged:
        instead = f"using {chosen.name!r}" if chosen else "and no whole one is left"
        warnings.warn(f"skipped damaged checkpoints in {root}, {instead}: " + " | ".join(damaged), stacklevel=2)
    return chosen


def _read(folder: Path, names: Sequence[str] | None) -> Checkpoint:
    record = read_record(folder)
    for name in names or ():
        if name not in record.tensors:
            raise CheckpointError(
                f"checkpoint {folder.name!r} was saved without {name!r}; it holds {', '.join(record.tensors) or 'none'}. "
                "Load only those, or use a checkpoint that was saved with it"
            )
    keys = record.tensors if names is None else list(names)
    tensors = {key: load_tensors(folder, key, record.files) for key in keys}
    if names is None:
        for file in record.files.keys() - {f"{key}.safetensors" for key in keys}:
            verified(folder, file, record.files)
    return Checkpoint(folder, dict(record.manifest), tensors, record.versions)


def _locate(path: Path) -> Path:
    """The folder to read for `path`: `path` itself, after moving back a copy that a dead writer had set aside."""
    if os.path.isfile(path):
        raise refuse_file(path)
    check_name(path.name)
    copies = [] if os.path.lexists(path) else _set_aside(path)
    if copies:
        _log.warning("the program that replaced checkpoint %s died halfway; reading the one before", path)
        try:
            disk.rename(copies[-1], path)
        except OSError:  # nothing may be written here, or a living writer was quicker
            if not os.path.lexists(path):
                return copies[-1]
    try:
        target = path.resolve()
        inside = target.parent == path.parent.resolve() and is_name(target.name)
    except (OSError, RuntimeError):  # a ring of links
        inside = False
    if not inside:
        raise CheckpointError(
            f"{path} is a link that leads out of {path.parent}; give the place itself that it leads to"
        )
    return path


def _leftovers(root: Path) -> list[tuple[str, str, Path]]:
    """Name, kind ("tmp" or "old") and path of each unfinished or replaced folder of living or dead writers."""
    with reading(root):
        entries = sorted(root.iterdir()) if os.path.isdir(root) else []
    matches = [(_LEFTOVER.fullmatch(entry.name), entry) for entry in entries]
    return [(match["name"], match["kind"], entry) for match, entry in matches if match and not entry.is_symlink()]


def _set_aside(path: Path) -> list[Path]:
    """Complete copies of a checkpoint that writers had set aside to replace it, the latest last."""
    copies = []
    for name, kind, entry in _leftovers(path.parent):
        if name == path.name and kind == "old":
            with contextlib.suppress(CheckpointError):
                copies.append((read_record(entry).written_at, entry))
    return [entry for _, entry in sorted(copies)]


def _names(root: Path) -> list[str]:
    """Names of everything that looks like a checkpoint, copies set aside included."""
    names = {name for name, kind, _ in _leftovers(root) if kind == "old"}
    for entry in root.iterdir() if os.path.isdir(root) else ():
        if is_name(entry.name) and (os.path.lexists(entry / MANIFEST_NAME) or any(entry.glob("*.safetensors"))):
            names.add(entry.name)
    return sorted(names)


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_mtime_ns)


@contextlib.contextmanager
def _among_writers(root: Path) -> Iterator[None]:
    """Share the folder's lock with other writers. A writer that is alone first removes what dead writers left."""
    if not root.is_dir():
        disk.make_folder(root)
        with contextlib.suppress(OSError):  # the parent may be unreadable
            disk.sync_folder(root.parent)
    if fcntl is None:
        yield
        return
    descriptor = os.open(root, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # other writers are active, or there are no locks here: remove nothing
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name, kind, entry in _leftovers(root):
                # until the new folder has its name, the copy set aside is the only one
                if kind == "tmp" or os.path.lexists(root / name):
                    disk.remove(entry)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _check_free(final: Path, overwrite: bool) -> None:
    while True:  # repeated where another writer finishes in between
        before = _identity(final), os.path.lexists(final)
        foreign = final.is_symlink() or not final.is_dir() or not os.path.lexists(final / MANIFEST_NAME)
        if (_identity(final), os.path.lexists(final)) == before:
            break
    if before[1] and foreign:
        raise CheckpointError(f"{final} is there and is no checkpoint; choose another name, or remove it yourself")
    if not overwrite and (final.exists() or _set_aside(final)):
        raise CheckpointError(f"checkpoint {final.name!r} exists already in {final.parent}. {_TAKEN}")


def _move_into_place(temporary: Path, final: Path, overwrite: bool) -> list[Path]:
    """Rename the new folder to `final`; returns the paths of folders it replaced (several if writers race)."""
    replaced: list[Path] = []
    try:
        while True:
            try:
                disk.rename(temporary, final)
                return replaced
            except OSError as error:  # `final` exists, or did until just now, or the disk cannot be written
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not os.path.lexists(final):
                    raise
            if not overwrite:
                raise CheckpointError(f"checkpoint {final.name!r} exists by now in {final.parent}. {_TAKEN}")
            aside = final.parent / f".{final.name}.old-{uuid.uuid4().hex}"
            with contextlib.suppress(FileNotFoundError):  # another writer was quicker to set it aside
                disk.rename(final, aside)
                replaced.append(aside)
    finally:
        if replaced and not os.path.lexists(final):
            with contextlib.suppress(OSError):
                disk.rename(replaced[-1], final)


def _settle(final: Path, replaced: list[Path]) -> None:
    """Flush the renames to the disk, then delete the replaced folders."""
    try:
        disk.sync_folder(final.parent)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {final.name!r} is in its place, but {final.parent} could not be flushed to the disk: {error}. "
            "A power failure could still undo it; save again under another name"
        ) from error
    for folder in replaced:
        disk.remove(folder)
