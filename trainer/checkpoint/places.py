"""Where checkpoints lie: their folders, what living and dead writers leave beside them, and how one takes its place."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

from ...datums import disk
from ...datums.errors import CheckpointError
from .manifest import MANIFEST_NAME, check_name, is_name, read_record, reading, refuse_file

try:
    import fcntl
except ImportError:  # Windows: leftovers of dead writers cannot be told from work in progress, and stay
    fcntl = None

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old)-[0-9a-f]{32}")
_TAKEN = "Choose another name, or pass overwrite=True"
#: The folder, among the states of a service, that has the weights saved for samplers: each kind has names of its own.
SAMPLER_WEIGHTS = "sampler_weights"
_log = logging.getLogger(__name__)


def not_for_samplers(name: str) -> str:
    """The name of a state itself. Raises CheckpointError for that of the folder of weights for samplers."""
    if isinstance(name, str) and name.lower() == SAMPLER_WEIGHTS:
        raise CheckpointError(f"{name!r} is the folder of what save_weights_for_sampler saves: choose another name")
    return name


def locate(path: Path) -> Path:
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
        inside = target.parent == path.parent.resolve() and is_name(target.name) and not target.is_symlink()
    except (OSError, RuntimeError):  # a ring of links; from Python 3.13 on what is left is a link
        inside = False
    if not inside:
        raise CheckpointError(
            f"{path} is a link that leads out of {path.parent}; give the place itself that it leads to"
        )
    return path


def leftovers(root: Path) -> list[tuple[str, str, Path]]:
    """Name, kind ("tmp" or "old") and path of each unfinished or replaced folder of living or dead writers."""
    with reading(root):
        entries = sorted(root.iterdir()) if os.path.isdir(root) else []
    matches = [(_LEFTOVER.fullmatch(entry.name), entry) for entry in entries]
    return [(match["name"], match["kind"], entry) for match, entry in matches if match and not entry.is_symlink()]


def _set_aside(path: Path) -> list[Path]:
    """Complete copies of a checkpoint that writers had set aside to replace it, the latest last."""
    copies = []
    for name, kind, entry in leftovers(path.parent):
        if name == path.name and kind == "old":
            with contextlib.suppress(CheckpointError):
                copies.append((read_record(entry).written_at, entry))
    return [entry for _, entry in sorted(copies)]


def names_in(root: Path) -> list[str]:
    """Names of everything that looks like a checkpoint, copies set aside included."""
    names = {name for name, kind, _ in leftovers(root) if kind == "old"}
    for entry in root.iterdir() if os.path.isdir(root) else ():
        if is_name(entry.name) and (os.path.lexists(entry / MANIFEST_NAME) or any(entry.glob("*.safetensors"))):
            names.add(entry.name)
    return sorted(names)


def identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_mtime_ns)


@contextlib.contextmanager
def among_writers(root: Path) -> Iterator[None]:
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
            for name, kind, entry in leftovers(root):
                # until the new folder has its name, the copy set aside is the only one
                if kind == "tmp" or os.path.lexists(root / name):
                    disk.remove(entry)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def check_free(final: Path, overwrite: bool) -> None:
    while True:  # repeated where another writer finishes in between
        before = identity(final), os.path.lexists(final)
        foreign = final.is_symlink() or not final.is_dir() or not os.path.lexists(final / MANIFEST_NAME)
        if (identity(final), os.path.lexists(final)) == before:
            break
    if before[1] and foreign:
        raise CheckpointError(f"{final} is there and is no checkpoint; choose another name, or remove it yourself")
    if not overwrite and (final.exists() or _set_aside(final)):
        raise CheckpointError(f"checkpoint {final.name!r} exists already in {final.parent}. {_TAKEN}")


def move_into_place(temporary: Path, final: Path, overwrite: bool) -> list[Path]:
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


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint: out of its name in one step, so that no reader sees a part of it; then its files.

    Raises OSError where it cannot be renamed. Files that stay, as where the program dies, go with the next save.
    """
    aside = path.parent / f".{path.name}.tmp-{uuid.uuid4().hex}"
    disk.rename(path, aside)
    disk.remove(aside)


def settle(final: Path, replaced: list[Path]) -> None:
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
