"""The run's end of the confined process: it is started at the first question, asked, and ended with the run.

    mathematics = confined("mathematics")
    mathematics.score(["1/2", True], "0.5", seconds=10.0)    # 1.0

It knows neither the user's environment variables nor open files. Each answer is scored by a worker, a fork of it between walls
(`inside/walls.py`), in which an answer that takes too long or too much memory, or crashes, is a `Failure` and ends that worker
only. A process that was ended from outside is started again. Linux or macOS only.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ...datums.errors import RewardError
from ..settings.choices import SECONDS

#: Limits for scoring an answer, which usually takes milliseconds: of time, and of memory beyond what the verifier has.
GIBIBYTES = 4
#: Answers that a worker scores before it is replaced, unless one fails; a new one has to fill SymPy's caches again.
ANSWERS = 1000
#: Variables of the environment that the process needs to start; no other is passed on.
PASSED_ON = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME")
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from inside.serve import main; del sys.path[0]; main()"
#: How much longer than its limits an answer may take before the whole process is ended, in seconds.
_PATIENCE = 120.0

Kind = Literal["gym", "mathematics", "function"]
_said: set[str] = set()


@dataclass(frozen=True)
class Failure:
    """Why an answer has no score. is_limit: time, memory or a crash, rather than an error that the verifier raised."""

    text: str
    is_limit: bool


@dataclass
class Failures:
    """Counts answers that could not be scored; prints the first on stderr."""

    count: int = 0

    def note(self, what: str) -> None:
        """Count one."""
        if not self.count:
            print(f"warning: {what}. Such answers score 0", file=sys.stderr)
        self.count += 1


@cache
def confined(kind: Kind, path: str = "", folders: tuple[str, ...] = ()) -> Confined:
    """The process of a kind, one for the whole run. path, folders: of a function, its "module:name" and where to import it."""
    options = {"path": path} if kind == "function" else {}
    return Confined(kind, options, folders)


@dataclass
class Confined:
    """A confined process. Threads take turns.

    missing: once it was started, a word on each wall that this system does not have.
    """

    kind: Kind
    options: Mapping[str, Any] = field(default_factory=dict)
    folders: Sequence[str] = ()
    gibibytes: int = GIBIBYTES
    _process: subprocess.Popen[bytes] | None = None
    _owner: int = 0
    missing: tuple[str, ...] = ()
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def call(self, **request: Any) -> Any:
        """Ask what is trusted, such as for a question. Raises RewardError where that fails."""
        reply = self._ask({"call": request}, None)
        return reply["value"]

    def score(self, what: Any, answer: str, *, seconds: float = SECONDS, alone: bool = False) -> float | Failure:
        """The score of an answer. alone: its worker scores no other after it, so that it can change no other's score."""
        request = {"what": what, "answer": answer, "seconds": seconds, "last": alone}
        reply = self._ask(request, seconds + _PATIENCE)
        if "score" in reply:
            return reply["score"]
        return Failure(reply.get("failure") or reply["error"], "failure" in reply)

    def end(self) -> None:
        """End the process and its workers; the next call starts it again."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()  # waits, and closes the pipes; workers end with it

    def _ask(self, request: Mapping[str, Any], seconds: float | None) -> dict[str, Any]:
        line = json.dumps(request).encode() + b"\n"
        with self._turn:
            try:
                reply = self._sent(line, seconds)
            except BaseException:  # Ctrl-C too: its reply must not be taken for the next one's
                self.end()
                raise
        if reply is None:
            self.end()
            if "call" in request:
                raise RewardError(f"the process of {self._name()} ended while it was asked for {request['call']}")
            return {"failure": "the whole process ended"}
        if reply.get("is_call"):
            raise RewardError(f"{self._name()}: {reply['error']}")
        return reply

    def _sent(self, line: bytes, seconds: float | None) -> dict[str, Any] | None:
        """Send a request, twice where the process was ended while it was idle. None where it ends or takes too long."""
        for _ in range(2):
            process = self._running()
            assert process.stdin is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
            except BrokenPipeError:
                self.end()
                continue
            return _reply(process, seconds)
        return None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid() or (self._process is not None and self._process.poll() is not None):
            self.end()  # after a fork the process answers to the parent only
        if self._process is None:
            self._process = self._started()
        return self._process

    def _started(self) -> subprocess.Popen[bytes]:
        if os.name != "posix":
            raise RewardError(
                f"{self._name()} runs in a confined process, which Windows does not have: use Linux or WSL"
            )
        self._owner = os.getpid()
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}
        own = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1", "LANG": "C.UTF-8"}
        process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-c", _PROGRAM, str(Path(__file__).parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**{name: os.environ[name] for name in PASSED_ON if name in os.environ}, **threads, **own},
            cwd=os.getcwd() if self.folders else "/",
            start_new_session=True,  # Ctrl-C in the terminal is for the run alone
        )
        atexit.register(self.end)
        start = {
            **{"kind": self.kind, "options": self.options, "folders": list(self.folders)},
            **{"memory": self.gibibytes << 30, "answers": ANSWERS},
        }
        assert process.stdin is not None
        process.stdin.write(json.dumps(start).encode() + b"\n")
        process.stdin.flush()
        reply = _reply(process, None) or {"error": f"it ended with exit code {process.wait()}"}
        if "error" in reply:
            process.kill()
            process.communicate()
            raise RewardError(f"the confined process of {self._name()} does not start: {reply['error']}")
        self.missing = tuple(reply["value"])
        if self.missing:
            _say_once(
                f"warning: verifiers are confined less than they could be: {'; '.join(self.missing)}; see SECURITY.md"
            )
        return process

    def _name(self) -> str:
        return {"gym": "reasoning-gym", "mathematics": "math-verify"}.get(self.kind) or f"reward {self.options['path']}"


def _reply(process: subprocess.Popen[bytes], seconds: float | None) -> dict[str, Any] | None:
    """The process's next line; None where it ends, or says nothing for `seconds`."""
    assert process.stdout is not None
    deadline = None if seconds is None else time.monotonic() + seconds
    pieces: list[bytes] = []
    while not (pieces and pieces[-1].endswith(b"\n")):
        left = None if deadline is None else max(deadline - time.monotonic(), 0)
        if not select.select([process.stdout], [], [], left)[0]:
            return None
        piece = os.read(process.stdout.fileno(), 1 << 16)
        if not piece:
            return None
        pieces.append(piece)
    return json.loads(b"".join(pieces))


def _say_once(line: str) -> None:
    if line not in _said:
        _said.add(line)
        print(line, file=sys.stderr)
