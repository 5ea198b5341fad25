"""A server process that pytest-xdist's processes share."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from ...serve.process import Server, serving

#: Seconds that the process which started the server waits for the others' tests.
PATIENCE = 900.0


@contextlib.contextmanager
def shared(folder: Path, *flags: str) -> Iterator[str]:
    """The URL of a server with its files in `folder`. The first that needs it starts it, and ends it after the others."""
    users = folder / "users"
    with contextlib.ExitStack() as ending:
        with FileLock(f"{folder}.lock"):
            users.mkdir(parents=True, exist_ok=True)
            mine = None if (folder / "url").exists() else ending.enter_context(serving(folder / "root", *flags))
            if mine is not None:
                (folder / "url").write_text(mine.url, encoding="utf-8")
            user = users / str(os.getpid())
            user.touch()
        try:
            yield (folder / "url").read_text(encoding="utf-8")
        finally:
            user.unlink()
            if mine is not None:
                _end_after_the_others(folder, mine)


def _end_after_the_others(folder: Path, server: Server) -> None:
    latest = time.monotonic() + PATIENCE
    while True:
        with FileLock(f"{folder}.lock"):
            if time.monotonic() > latest or not any(_runs(int(user.name)) for user in (folder / "users").iterdir()):
                (folder / "url").unlink()
                server.stop()
                return
        time.sleep(0.2)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
