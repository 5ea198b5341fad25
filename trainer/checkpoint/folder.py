"""Checkpoint folders, written so that each is complete or does not exist.

A checkpoint `step-10` is a folder. It is written as `.step-10.tmp-<id>`, flushed to the disk, and renamed. To replace one,
the old folder is renamed to `.step-10.old-<id>`, the new one takes its name, and the old one is deleted; if a program dies
between the two renames, the next reader moves the old one back. Names that begin with a dot are never read as checkpoints,
and the next writer removes what dead writers left. No name is locked: of two writers of one name the first succeeds, and
the other is refused or, with `overwrite`, replaces it.

Ranks write one folder together: each the files of what it holds, the first rank all else, the manifest last.
"""

from __future__ import annotations

import contextlib
import functools
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ...datums import disk
from ...datums.errors import CheckpointError
from ..ranks import ALONE, Ranks
from ..shards import Part
from .files import check_contents, seal_folder, verified, write_files
from .layouts import file_name, gathered_shards
from .loading import load_group, needed_files, verify
from .manifest import File, check_name, read_record
from .places import among_writers, check_free, identity, leftovers, locate, move_into_place, names_in, settle

__all__ = ["Checkpoint", "check_name", "latest_checkpoint", "read_checkpoint", "write_checkpoint"]

Groups = Mapping[str, Mapping[str, torch.Tensor]]
Told = Callable[[], contextlib.AbstractContextManager[None]]
PartsOfGroups = Mapping[str, Mapping[str, Part]]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: its `tensors[key][name]`, its manifest, and the versions of the libraries that wrote it.

    files: the file of each key, for messages; with * for the rank where several ranks wrote one each.
    """

    path: Path
    manifest: dict[str, Any]
    tensors: dict[str, dict[str, torch.Tensor]]
    versions: dict[str, str | None] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    def file(self, key: str) -> Path:
        """The file of a key of `tensors`, for messages."""
        return self.files.get(key, self.path / f"{key}.safetensors")


def write_checkpoint(
    root: Path,
    name: str,
    *,
    tensors: Groups,
    manifest: Mapping[str, Any],
    extra_files: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
    ranks: Ranks = ALONE,
    parts: PartsOfGroups | None = None,
) -> Path:
    """Write `root/name` with `<key>.safetensors` for each entry of `tensors`, and return its path.

    `manifest` must be JSON (string keys, lists, no NaN), and is read back unchanged; a number `step` in it orders
    checkpoints. Raises CheckpointError for a bad name, a name that exists (unless `overwrite`), values that cannot be
    stored, and when the disk is full or cannot be written; then `root` holds what it held before.

    ranks   all of them call this together, and all raise where one fails. The first writes what is not in `parts`
    parts   by key and name, for tensors that lie over the ranks: which part of the whole each of this rank's tensors is
    """
    root, cut = Path(root), parts or {}
    final, extra = root / check_name(name), extra_files or {} if ranks.is_first else {}
    told = functools.partial(_told, ranks, root, name)
    files = {key: file_name(check_name(key), ranks.rank, ranks.size if key in cut else None) for key in tensors}
    temporary = root / f".{name}.tmp-{uuid.uuid4().hex}" if ranks.is_first else None
    replaced: list[Path] = []
    with contextlib.ExitStack() as held:
        with told():
            plain = check_contents(files.values(), manifest, extra)
            if temporary is not None:
                held.enter_context(among_writers(root))
                check_free(final, overwrite)
        shards = gathered_shards(ranks, tensors, cut)
        own = {
            files[key]: _stored(group, cut.get(key)) for key, group in tensors.items() if key in cut or ranks.is_first
        }
        try:
            everything = _filled(ranks, told, temporary, own, extra)
            with told():
                if temporary is not None:
                    seal_folder(temporary, everything, tensors, shards, plain)
                    replaced = move_into_place(temporary, final, overwrite)
        finally:
            if temporary is not None:
                disk.remove(temporary)
        with told():
            if ranks.is_first:
                settle(final, replaced)
    return final


def _filled(
    ranks: Ranks, told: Told, temporary: Path | None, own: Groups, extra_files: Mapping[str, bytes]
) -> dict[str, File]:
    """Make the first rank's temporary folder, and write each rank's files into it; returns all of them."""
    with told():
        if temporary is not None:
            disk.make_folder(temporary)
    folder = ranks.gather(temporary)[0]
    with told():
        written = write_files(folder or Path(), own, extra_files)
    return {name: file for one in ranks.gather(written) for name, file in one.items()}


@contextlib.contextmanager
def _told(ranks: Ranks, root: Path, name: str) -> Iterator[None]:
    """Turn what the disk or safetensors raise while a checkpoint is written into a CheckpointError, on every rank."""
    with ranks.agree():
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"checkpoint {name!r} could not be written to {root}: {error}. What was there before is untouched. "
                "Free some space or choose a folder that can be written, and save again"
            ) from error


def _stored(group: Mapping[str, torch.Tensor], parts: Mapping[str, Part] | None) -> Mapping[str, torch.Tensor]:
    """The tensors of a group that this rank writes."""
    if parts is None:
        return group
    return {name: tensor for name, tensor in group.items() if parts[name].is_stored and not parts[name].is_empty}


def read_checkpoint(
    path: Path, *, names: Sequence[str] | None = None, ranks: Ranks = ALONE, parts: PartsOfGroups | None = None
) -> Checkpoint:
    """Read the tensors of the keys in `names`; each file is verified before it is parsed.

    By default all tensors are read, and all other files of the checkpoint are verified too. Raises CheckpointError, with
    the file and the remedy, where anything is missing, damaged, unsafe or of another format.

    ranks   all of them call this together, and all raise where one fails; they share the work of verifying
    parts   by key and name, which part of a whole tensor is wanted here; all of those that are not named. It does not matter
            over how many ranks the checkpoint was written
    """
    path = Path(path)
    read: Checkpoint | CheckpointError = CheckpointError(str(path))
    for _ in range(20):  # repeated only where a writer replaces the checkpoint meanwhile
        with ranks.agree():
            folder = locate(path)
            before = identity(folder)
        try:
            read = _read(folder, names, ranks, parts)
        except CheckpointError as error:
            read = error
        with ranks.agree():
            between_renames = before is None and any(name == path.name for name, _, _ in leftovers(path.parent))
        if not any(ranks.gather(before != identity(folder) or between_renames)):
            break
        time.sleep(0.01)
    else:  # parts of two checkpoints may have come together
        read = CheckpointError(f"{path} was replaced each time that it was read. Read it again: {read}")
    if not isinstance(read, Checkpoint):
        raise read
    return read


def latest_checkpoint(root: Path, *, prefix: str = "") -> Path | None:
    """The checkpoint in `root` with the greatest step in its manifest, of equals the latest; None if there is none.

    All its files are verified. Damaged checkpoints are skipped, with a warning that names them.
    """
    root, damaged, readable = Path(root), [], []
    for name in names_in(root):
        if not name.startswith(prefix):
            continue
        try:
            folder = locate(root / name)
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


def _read(folder: Path, names: Sequence[str] | None, ranks: Ranks, parts: PartsOfGroups | None) -> Checkpoint:
    with ranks.agree():
        record = read_record(folder)
        for name in names or ():
            if name not in record.tensors:
                raise CheckpointError(
                    f"checkpoint {folder.name!r} was saved without {name!r}; it holds {', '.join(record.tensors) or 'none'}. "
                    "Load only those, or use a checkpoint that was saved with it"
                )
    if len(set(ranks.gather(record.sha256))) > 1:
        raise CheckpointError(
            f"{folder} is another checkpoint on one rank than on another: give all ranks the same one"
        )
    keys = record.tensors if names is None else list(names)
    needed = needed_files(record, keys, parts or {})
    verify(folder, record, needed, record.files if names is None else (), ranks)
    with ranks.agree():
        tensors = {key: load_group(folder, record, key, None if parts is None else parts.get(key, {})) for key in keys}
    files = {key: folder / f"{key}-*-of-{shards.files}.safetensors" for key, shards in record.shards.items()}
    return Checkpoint(folder, dict(record.manifest), tensors, record.versions, files)
