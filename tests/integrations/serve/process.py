"""`lossbook serve` as a child process, for tests of the whole server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
#: Seconds for a server to start or to stop on a machine that does much else.
PATIENCE = 300.0
_COMMAND = "from lossbook.cookbook.cli import command; command()"


class Server:
    """A running server. `url`; `root`: its folder; `log`: the file of its log. first: Python that runs before the command."""

    def __init__(self, root: Path, *flags: str, environment: dict[str, str] | None = None, first: str = "pass") -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.log = root, root.with_name(f"{root.name}.log")
        self.lines: list[str] = []
        self._ready = threading.Event()
        given = ["--root", str(root), "--device", "cpu", *([] if "--port" in flags else ["--port", "0"]), *flags]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"{first}\n{_COMMAND}", "serve", *given],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(environment or {})},
            )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        if not self._ready.wait(PATIENCE) or self.process.poll() is not None:
            self.kill()
            raise AssertionError(f"the server did not start: {self.lines} {self.said()[-2000:]}")
        (self.url,) = re.findall(r"TINKER_BASE_URL=(\S+)", "\n".join(self.lines))
        self.port = int(self.url.rpartition(":")[2])

    def said(self) -> str:
        """Its log so far."""
        return self.log.read_text(encoding="utf-8")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """End it at once, as a machine that fails does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        self._listener.join(PATIENCE)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if "TINKER_API_KEY" in line:
                self._ready.set()
        self._ready.set()


@contextlib.contextmanager
def serving(
    root: Path, *flags: str, environment: dict[str, str] | None = None, first: str = "pass"
) -> Iterator[Server]:
    """A server for a block, with `--device cpu`, a free port and one thread; killed in the end if it still runs."""
    server = Server(root, *flags, environment=environment, first=first)
    try:
        yield server
    finally:
        server.kill()


def program(server: Server, name: str, *arguments: str, key: str = "tml-local") -> subprocess.Popen[str]:
    """A function of `programs.py` as a process of its own, which the SDK connects to the server."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.integrations.serve.programs", name, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TINKER_BASE_URL": server.url, "TINKER_API_KEY": key},
    )


def finished(process: subprocess.Popen[str], word: str = "") -> Any:
    """What a program returned. word: a line to give it first. An AssertionError has its traceback."""
    out, err = process.communicate(word, PATIENCE)
    if process.returncode:
        raise AssertionError(err[-4000:])
    return json.loads(out.splitlines()[-1])


def run_program(server: Server, name: str, *arguments: str, key: str = "tml-local") -> Any:
    """Run a function of `programs.py` in a process of its own, and give what it returns."""
    return finished(program(server, name, *arguments, key=key))
