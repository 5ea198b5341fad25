"""A worker: a fork of the server that scores answers between the walls, and says no more than a number or a line about each.

The server trusts nothing of it: it reads a short line in time, or ends the worker.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .walls import raise_walls

#: Most characters of a message, and bytes of an answer to the server.
MOST_CHARACTERS, MOST_BYTES = 300, 4096


class Scorer(Protocol):
    """What is called. `call` and `prepare` run in the server, for trusted arguments; `score` runs in a worker."""

    def call(self, request: Any) -> Any:
        """Whatever else the run asks: JSON values."""
        ...

    def prepare(self, what: Any) -> bool:
        """Load what scoring `what` needs; whether anything was loaded that workers of before do not have."""
        ...

    def score(self, what: Any, answer: str) -> float:
        """The score of an answer."""
        ...


@dataclass(frozen=True)
class Limits:
    """folders that may be read; bytes of memory, beyond what the server has; answers of a worker."""

    folders: Sequence[str]
    memory: int
    answers: int


class Worker:
    """The server's end of a worker. `missing`: a word on each wall that this system does not have."""

    def __init__(self, scorer: Scorer, limits: Limits, seconds: float, parent: int) -> None:
        """parent: the descriptor whose end means that the run is over. Raises OSError where it does not start."""
        self.parent = parent
        self.seconds = seconds
        self.answers = 0
        heard, self._ask = os.pipe()
        self._heard, tell = os.pipe()
        server = os.getpid()
        gc.freeze()  # a collection would copy the pages that both share
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _work(scorer, limits, seconds, server, heard, tell)
            finally:
                os._exit(1)
        os.close(heard)
        os.close(tell)
        first = self._line(time.monotonic() + 60)
        if isinstance(first, dict):
            self.end()
            raise OSError(f"a worker does not start: {first['failure']}")
        self.missing: list[str] = json.loads(first)

    def score(self, what: Any, answer: str, seconds: float) -> dict[str, Any]:
        """{"score": number}, {"error": message} where the verifier raised, or {"failure": message} where the worker is lost."""
        self.answers += 1
        deadline = time.monotonic() + seconds
        reply = self._say(json.dumps([what, answer]).encode() + b"\n", deadline) or self._line(deadline)
        if isinstance(reply, dict):
            reply["failure"] = reply["failure"].replace("SECONDS", f"{seconds:g} seconds")
            return reply
        kind, text = reply[:1], reply[1:]
        if kind == "!":
            return {"error": text}
        if kind == "?":
            return {"failure": text}
        try:
            return {"score": float(reply)}
        except ValueError:
            return {"failure": f"it wrote {reply[:40]!r} in place of a score"}

    def end(self) -> None:
        """Kill it and wait."""
        os.close(self._ask)
        os.close(self._heard)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def _say(self, line: bytes, deadline: float) -> dict[str, Any] | None:
        """Write a line; a failure where the worker does not read it."""
        while line:
            left = max(deadline - time.monotonic(), 0)
            if not select.select([], [self._ask], [], left)[1]:
                return {"failure": "it took more than SECONDS"}
            try:
                line = line[os.write(self._ask, line[: select.PIPE_BUF]) :]
            except BrokenPipeError:
                return {"failure": "its process ended"}
        return None

    def _line(self, deadline: float) -> str | dict[str, Any]:
        """Read a line, or a failure. Ends the server where the run is over."""
        text = b""
        while not text.endswith(b"\n"):
            left = max(deadline - time.monotonic(), 0)
            ready = select.select([self._heard, self.parent], [], [], left)[0]
            if self.parent in ready:  # the run asks one thing at a time: this is its end
                self.end()
                os._exit(0)
            if not ready:
                return {"failure": "it took more than SECONDS"}
            more = os.read(self._heard, MOST_BYTES)
            text += more
            if not more:
                return {"failure": "its process ended: a crash, or a limit of memory or processor time"}
            if len(text) > MOST_BYTES:
                return {"failure": "it wrote more than a score"}
        return text.decode(errors="replace").partition("\n")[0]


def _work(scorer: Scorer, limits: Limits, seconds: float, server: int, heard: int, tell: int) -> None:
    """Score until the server ends it."""
    for low, high in ((3, min(heard, tell)), (min(heard, tell) + 1, max(heard, tell)), (max(heard, tell) + 1, 1 << 16)):
        os.closerange(low, high)
    missing = raise_walls(limits.folders, seconds * limits.answers, limits.memory, server)
    os.write(tell, json.dumps(missing).encode() + b"\n")
    with os.fdopen(heard, encoding="utf-8") as requests:
        for line in requests:
            os.write(tell, f"{_scored(scorer, *json.loads(line))}\n".encode())


def _scored(scorer: Scorer, what: Any, answer: str) -> str:
    try:
        return repr(float(scorer.score(what, answer)))
    except MemoryError:
        return "?it took more memory than it may"
    except BaseException as error:  # SystemExit too, and the panics of libraries in Rust
        text = " ".join(str(error).split())
        return f"!{type(error).__name__}: {''.join(filter(str.isprintable, text))}"[:MOST_CHARACTERS]
