"""`RankProcesses`: processes that are started once and run functions of tests as the ranks of one model."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, BinaryIO, Concatenate

from lossbook.trainer.ranks import ALONE, Ranks

SCRIPT = Path(__file__).with_name("process.py")
#: Seconds after which a collective that waits for a rank raises, and then until a call has ended anyhow.
COLLECTIVE, GRACE = 120.0, 20.0


@dataclass
class Process:
    """One rank's process, the pipe to it, and the file that gets what it prints."""

    child: subprocess.Popen[bytes]
    pipe: Connection
    log: BinaryIO

    def printed(self) -> str:
        self.log.seek(0)
        return self.log.read().decode(errors="replace")[-4000:]


class RankProcesses:
    """Runs functions on ranks, in processes that are kept for the next call. Only a call that hangs or kills one ends them.

    timeout: seconds after which a collective that waits for another rank raises.
    """

    def __init__(self, timeout: float = COLLECTIVE) -> None:
        self.timeout, self.grace = timeout, GRACE
        self._processes: list[Process] = []
        self._folder = tempfile.mkdtemp(prefix="lossbook-ranks-")
        self._size, self._meetings, self._meeting = 0, 0, ""

    def run(self, function: Callable[Concatenate[Ranks, ...], Any], *args: Any, size: int = 2) -> list[Any]:
        """`function(ranks, *args)` on each of `size` ranks; returns what each returned, by rank.

        The function lies at the top of a module of tests. All that travels is pickled. Where ranks raise, the exception of the
        first of them is raised here, with its traceback as a note. `size=1` runs here, in this process.
        """
        if size == 1:
            return [function(ALONE, *args)]
        call = pickle.dumps((function, args))
        while len(self._processes) < size:
            self._processes.append(self._start(len(self._processes)))
        if self._size != size:
            self._meetings += 1
            self._size, self._meeting = size, f"{self._folder}/meeting-{self._meetings}"
        message = pickle.dumps((size, self._meeting, call))
        for process in self._processes[:size]:
            process.pipe.send_bytes(message)
        return self._answers(size)

    def close(self) -> None:
        """End the processes, for good."""
        self._end()
        shutil.rmtree(self._folder)

    def _end(self) -> None:
        for process in self._processes:
            process.child.kill()
            process.child.wait()
            process.pipe.close()
            process.log.close()
        self._processes, self._size = [], 0

    def _start(self, rank: int) -> Process:
        here, there = Pipe()
        log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        child = subprocess.Popen(
            [sys.executable, "-P", str(SCRIPT), str(there.fileno()), str(rank), str(self.timeout)],
            pass_fds=[there.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        there.close()
        return Process(child, here, log)

    def _answers(self, size: int) -> list[Any]:
        """What each rank answers. Where one died or does not answer, all are ended."""
        waiting = {process.pipe: rank for rank, process in enumerate(self._processes[:size])}
        answers: dict[int, Any] = {}
        failures: dict[int, tuple[BaseException, str]] = {}
        deadline = time.monotonic() + self.timeout + self.grace
        while waiting and (ready := wait(list(waiting), max(deadline - time.monotonic(), 0.0))):
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = waiting.pop(pipe)
                try:
                    answers[rank], error, where = pickle.loads(pipe.recv_bytes())
                except (EOFError, ConnectionError):
                    error, where = self._died(rank), ""
                if error is not None:
                    failures[rank] = error, where
                    self._size = 0  # the next call meets anew
                    deadline = min(deadline, time.monotonic() + self.grace)
        if waiting and not failures:  # else they wait for a rank that failed
            failures = {rank: (self._hangs(rank), "") for rank in waiting.values()}
        if any(process.child.poll() is not None for process in self._processes) or waiting:
            self._end()
        for rank, (error, where) in sorted(failures.items()):
            error.add_note(f"raised by rank {rank} of {size}:\n{where}")
            raise error
        return [answers[rank] for rank in range(size)]

    def _died(self, rank: int) -> RuntimeError:
        process = self._processes[rank]
        code = process.child.wait()
        return RuntimeError(f"rank {rank} ended with exit code {code}. It printed:\n{process.printed()}")

    def _hangs(self, rank: int) -> TimeoutError:
        self._processes[rank].child.send_signal(signal.SIGUSR1)  # it prints where it is
        time.sleep(1.0)
        return TimeoutError(f"rank {rank} does not answer. It printed:\n{self._processes[rank].printed()}")
