"""Writing to the disk: files and folders that are whole or not there. Whatever the package writes goes through here.

A test can let any of these operations fail. `LOSSBOOK_FAILPOINT=ACTION@N` does ACTION at the N-th operation of the process
that ACTION can meet, `ACTION@N:rename` at the N-th rename, `ACTION@N+` from there on. Unset, nothing happens.

kill              SIGKILL before the operation
enospc, eio       the operation raises OSError: the disk is full, or fails
short, torn       half of what a write writes arrives, then the disk is full, or the process is killed
truncate, flip    a write looks well, but half of it is lost, or one bit is another
list@FILE         nothing; FILE gets a line for each operation
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

try:
    import fcntl
except ImportError:  # Windows: leftovers of dead writers cannot be told from work in progress, and stay
    fcntl = None

Operation = Literal["make", "write", "sync", "rename", "remove"]
FAILPOINT = "LOSSBOOK_FAILPOINT"
_ANYWHERE, _IN_WRITES = ("kill", "enospc", "eio"), ("short", "torn", "truncate", "flip")
_SETTING = re.compile(rf"({'|'.join(_ANYWHERE + _IN_WRITES)})@([1-9][0-9]*)(\+?)(?::(make|write|sync|rename|remove))?")
#: Operations that were counted so far, by setting; a test that uses a setting again clears it.
hits: dict[str, int] = {}


# --- files ------------------------------------------------------------------------------------------------------------


def write_file(path: Path, content: str | bytes) -> None:
    """Write or replace a file: completely and flushed to disk, or not at all. A link is followed.

    Raises OSError; then the file is as it was.
    """
    path = Path(os.path.realpath(path))
    if os.path.lexists(path) and not path.is_file():  # a device, such as /dev/stdout, has no place to rename to
        with writing(path):
            path.write_bytes(_bytes(content))
        return
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        with writing(scratch):
            scratch.write_bytes(_bytes(content))
        sync(scratch)
        rename(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise
    sync_folder(path.parent)


def write_new(path: Path, content: bytes) -> None:
    """Write a new file and flush it to disk, in a folder that is not at its final place yet. Fails if the file exists."""
    with writing(path), open(path, "xb") as file:
        file.write(content)
    sync(path)


def append(path: Path, text: str) -> None:
    """Append text to a file, creating it if needed. On OSError the file is unchanged."""
    before = path.stat().st_size if path.exists() else None
    rest = memoryview(text.encode())
    try:
        with writing(path), open(path, "ab", buffering=0) as file:  # what a buffer keeps would be written on closing
            while rest:
                rest = rest[file.write(rest) :]
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink() if before is None else os.truncate(path, before)
        raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around code that writes a file, or files in a folder: the place where a failpoint acts on the write."""
    action = failpoint("write", path)
    before = path.stat().st_size if action is not None and path.is_file() else 0
    yield
    if action is not None:
        _damage(action, path, before)


def sync(path: Path) -> None:
    """Flush a file's content to the disk."""
    failpoint("sync", path)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to the disk."""
    failpoint("sync", path)
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no such call
            raise
    finally:
        os.close(descriptor)


# --- folders ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_folder(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """A folder to fill, which becomes `target` at the end of the block: whole and on the disk, or not at all.

    replace: whether a `target` that is there by then gives way. Otherwise it stays, and what was filled goes.
    Raises OSError; after any error `target` is as it was. A process that dies leaves hidden folders beside `target`, which
    the next one removes; if it died between two renames, the next one puts the old folder back first.
    """
    target = Path(os.path.realpath(target))
    make_folder(target.parent)
    _clear_leftovers(target)
    scratch = _beside(target, "tmp")
    make_folder(scratch)
    held = _hold(scratch)
    try:
        yield scratch
        for path in sorted(scratch.rglob("*")):
            (sync_folder if path.is_dir() else sync)(path)
        sync_folder(scratch)
        if replace or not os.path.lexists(target):
            _put_in_place(scratch, target)
        sync_folder(target.parent)
    finally:
        remove(scratch)
        if held is not None:
            os.close(held)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are not there."""
    if not path.is_dir():
        failpoint("make", path)
        path.mkdir(parents=True, exist_ok=True)


def rename(source: Path, target: Path) -> None:
    """Give a file or folder another name, in one step; a file or an empty folder of that name is replaced."""
    failpoint("rename", target)
    os.replace(source, target)


def remove(path: Path, *, must: bool = False) -> None:
    """Remove a file, or a folder with its contents, if it exists. must: raise OSError on failure."""
    if not os.path.lexists(path):
        return
    try:
        failpoint("remove", path)
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except FileNotFoundError:
        pass  # another process was quicker
    except OSError:
        if must:
            raise


def _put_in_place(scratch: Path, target: Path) -> None:
    aside = _beside(target, "old") if os.path.lexists(target) else None
    if aside is not None:
        rename(target, aside)
    try:
        rename(scratch, target)
    except BaseException:
        if aside is not None:
            os.replace(aside, target)
        raise
    if aside is not None:
        remove(aside)


def _beside(target: Path, kind: Literal["tmp", "old"]) -> Path:
    return target.with_name(f".{target.name}.{kind}-{uuid.uuid4().hex}")


def _clear_leftovers(target: Path) -> None:
    """Put back what a dead process had set aside, and remove what it left; what a living one fills stays."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(tmp|old)-[0-9a-f]{{32}}")
    left = [(match[1], path) for path in target.parent.iterdir() if (match := pattern.fullmatch(path.name))]
    aside = sorted((path for kind, path in left if kind == "old"), key=lambda path: path.stat().st_mtime)
    if aside and not os.path.lexists(target):
        rename(aside.pop(), target)
    for path in [*aside, *(path for kind, path in left if kind == "tmp")]:
        with contextlib.suppress(OSError):  # it is held, or another process is quicker
            held = _hold(path)
            if held is not None:
                remove(path)
                os.close(held)


def _hold(folder: Path) -> int | None:
    """A lock on a folder, which ends with the process; raises OSError where another process has it."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


# --- failpoints -------------------------------------------------------------------------------------------------------


def failpoint(operation: Operation, path: Path) -> str | None:
    """Before each operation: kill or raise, if `LOSSBOOK_FAILPOINT` says so; returns what is to happen to a write."""
    setting = os.environ.get(FAILPOINT)
    return None if setting is None else _hit(setting, operation, path)


def _hit(setting: str, operation: Operation, path: Path) -> str | None:
    if setting.startswith("list@"):
        with open(setting.removeprefix("list@"), "a", encoding="utf-8") as file:
            file.write(f"{operation} {path}\n")
        return None
    match = _SETTING.fullmatch(setting)
    if match is None:
        raise ValueError(f"{FAILPOINT}={setting!r} is no failpoint: see lossbook/datums/disk.py, or unset it")
    action, number, lasting, only = match.groups()
    if operation != (only or operation) or (action in _IN_WRITES and operation != "write"):
        return None
    hits[setting] = hits.get(setting, 0) + 1
    if hits[setting] < int(number) or (hits[setting] > int(number) and not lasting):
        return None
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action in _ANYWHERE:
        code = errno.ENOSPC if action == "enospc" else errno.EIO
        raise OSError(code, os.strerror(code), str(path))
    return action


def _damage(action: str, path: Path, before: int) -> None:
    """Half of what was just written goes, or one bit of it changes; in a folder, of its largest file."""
    if path.is_dir():
        path = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    middle = (before + path.stat().st_size) // 2
    if action == "flip":
        with open(path, "rb+") as file:
            file.seek(middle)
            (byte,) = file.read(1)
            file.seek(middle)
            file.write(bytes([byte ^ 1]))
    else:
        os.truncate(path, middle)
    if action == "torn":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "short":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content
