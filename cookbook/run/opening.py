"""Opening a run's folder: whether a run can begin or go on there, and the lock by which one process at a time writes in it.

The system holds the lock for the process (flock), so it ends with the process, however that ends. File systems without flock
get filelock's other kind: a file that counts while its process is alive. A file beside it says which process that is. Readers
are not held up.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import uuid
import warnings
import weakref
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datums import disk
from ...datums.errors import RunError
from ..redaction import redacted
from .names import CONFIG, DATA_DIGEST, LOCK, OWNER, PROVENANCE, REPORT
from .records import read_settings

if TYPE_CHECKING:
    from filelock import BaseFileLock

#: Errors of file systems that have no locks, such as NFS without its lock daemon.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
#: The locks that this process holds, by folder.
_held: weakref.WeakValueDictionary[Path, FolderLock] = weakref.WeakValueDictionary()


class FolderLock:
    """The lock of one folder, which must exist when the lock is taken. It ends with `release`, or with this object.

    busy: a run is at work. Another run of this process takes over a lock whose run is not: it is one that failed and that
    something, such as a notebook's last error, still keeps alive.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.busy = False
        self._record = ""
        self._release: weakref.finalize[..., FolderLock] | None = None

    def take(self) -> None:
        """Take the lock; where it is held already, only look whether it still is the folder's lock.

        Raises RunError, naming the other process, where the folder is another run's, and OSError.
        """
        if self._record:
            self._check()
            return
        from filelock import FileLock, Timeout

        place = self.folder.resolve()
        earlier = _held.get(place)
        if earlier is not None and not earlier.busy:
            earlier._give_up()
        lock = FileLock(place / LOCK, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            raise RunError(
                f"{self.folder} is in use by {_owner(place)}; two runs in one folder would be mixed. Wait for it to end, end "
                "it, or choose another folder with --out"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(f"{self.folder} cannot be locked ({error}): start no second run in it", stacklevel=2)
        record = _record()
        self._release = weakref.finalize(self, _released, lock, place, record, os.getpid())
        disk.write_file(place / OWNER, record)
        self._record = record
        _held[place] = self

    def release(self) -> None:
        """Let other processes write in the folder."""
        if self._release is not None:
            self._release()
        self._record, self.busy = "", False

    def _give_up(self) -> None:
        """Release the lock, and let nothing more be written under it."""
        record = self._record
        self.release()
        self._record = record

    def _check(self) -> None:
        """Raise RunError where the folder was deleted, moved or taken since."""
        if _text(self.folder / OWNER) != self._record:
            raise RunError(
                f"{self.folder} was deleted, moved or taken by {_owner(self.folder)} while this run wrote in it; this run ends"
            )


def release_idle() -> None:
    """Release the locks of this process under which no run is at work, such as those of runs that failed before their first step."""
    for lock in list(_held.values()):
        if not lock.busy:
            lock.release()


def _record() -> str:
    now = datetime.now(UTC).isoformat(" ", "seconds")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now, "id": uuid.uuid4().hex})


def _owner(folder: Path) -> str:
    """Who holds a folder's lock, in words, as far as its file says."""
    try:
        record = json.loads(_text(folder / OWNER))
        return f"process {record['pid']:d} on {record['host']!s:.80} since {record['since']!s:.40}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another process"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _released(lock: BaseFileLock, folder: Path, record: str, process: int) -> None:
    if process != os.getpid():  # a forked child does not hold it
        return
    if _text(folder / OWNER) == record:  # else the folder is another's by now
        disk.remove(folder / OWNER)
        if os.name != "nt":
            disk.remove(folder / LOCK)  # who waits for a removed file looks again
    lock.release()


@dataclass(frozen=True)
class Opening:
    """How a run is opened; see `open_run`."""

    settings: Mapping[str, Any]
    resume: bool
    overwrite: bool
    may_change: Collection[str]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def check(self, path: Path) -> None:
        """Raise RunError unless the folder can be opened in this way."""
        if "\0" in str(path):
            raise RunError(f"{str(path)!r} is no folder's name")
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file; a run needs a folder")
        if self.resume:
            _check_same(path, self)
        elif path.exists() and _has_content(path):
            if not self.overwrite:
                raise RunError(
                    f"{path} is not empty. Choose --resume to continue the run in it, --overwrite to replace it, or "
                    "another folder with --out"
                )
            read_settings(path)  # raises for a folder without a run, which must not be emptied


def _has_content(path: Path) -> bool:
    """Whether a folder holds more than a run that ended before its first metrics, perhaps while it wrote one of these files."""
    early = (CONFIG, REPORT, DATA_DIGEST, PROVENANCE, LOCK, OWNER)
    return any(entry.name not in (*early, *(f".{name}.tmp" for name in early)) for entry in path.iterdir())


def _check_same(path: Path, opening: Opening) -> None:
    plain = [json.loads(json.dumps(dict(values))) for values in (opening.settings, opening.defaults)]
    now, defaults, before = (redacted(values) for values in (*plain, read_settings(path)))  # as config.json has them
    unknown = sorted(before.keys() - now.keys())
    if unknown:
        raise RunError(
            f"{path / CONFIG} has settings that this lossbook or recipe does not have: {', '.join(unknown)}. Continue the run "
            "with the recipe and the version that began it, or mend the file"
        )
    before = {key: before.get(key, defaults.get(key)) for key in now}
    refused = sorted(key for key in now if before[key] != now[key] and key not in opening.may_change)
    if refused:
        shown = "; ".join(f"{key} was {before[key]!r}, is {now[key]!r}" for key in refused)
        raise RunError(
            f"{path} holds a run with other settings, so it cannot be continued: {shown}. Take its settings with "
            f"--config {path / CONFIG}"
        )
