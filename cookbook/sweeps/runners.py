"""Running the runs of a sweep: one after the other in this process, or several at once in processes of their own."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from ...datums import disk
from ...datums.errors import LossbookError
from ..redaction import redacted
from ..run.interrupts import StopRequest, stop_on_signals
from ..run.opening import release_idle
from .record import State

#: A child's command line; the working folder stands on its path as it does here.
_CHILD = "from lossbook.cookbook.cli import command; command()"
#: Seconds between looks at the children, and that those which were told to stop at once may take.
_POLL, _GRACE = 0.05, 10.0


class Log(Protocol):
    """Where the beginning and the end of runs are noted."""

    def begin(self, number: int) -> None:
        """Run `number` begins."""
        ...

    def end(self, number: int, state: State, error: str = "") -> None:
        """Run `number` has ended."""
        ...


def run_in_turn(main: Callable[[Any], Any], configs: Sequence[tuple[int, Any]], log: Log) -> None:
    """Run the recipe's `main` for each numbered configuration. A failed run is noted, and the next begins.

    After Ctrl-C the run saves and SystemExit is raised; StopAtOnce and KeyboardInterrupt pass through, noted.
    """
    for number, config in configs:
        log.begin(number)
        try:
            main(config)
        except (SystemExit, KeyboardInterrupt):
            log.end(number, "interrupted")
            raise
        except Exception as error:  # of any kind: from lossbook, a user's function, the system
            if not isinstance(error, LossbookError):
                traceback.print_exc()
            log.end(number, "failed", _one_line(f"{type(error).__name__}: {error}"))
            del error
        else:
            log.end(number, "finished")
        release_idle()
        gc.collect()  # the model of the run that ended


def run_at_once(command: Sequence[str], configs: Sequence[tuple[int, Any]], log: Log, *, jobs: int, logs: Path) -> None:
    """Run up to `jobs` runs at once, each by the command line in a process of its own; its output goes to a file in `logs`.

    Ctrl-C and SIGTERM let the runs save and end, and raise SystemExit; a second one ends them at once.
    """
    waiting = deque(configs)
    running: list[_Child] = []
    is_told = False
    with tempfile.TemporaryDirectory() as scratch, stop_on_signals() as stop, _ended_at_once(running, log):
        while running or (waiting and not stop):
            while waiting and len(running) < jobs and not stop:
                number, config = waiting.popleft()
                log.begin(number)
                running.append(_Child.start(command, number, config, Path(scratch), jobs))
            if stop and not is_told:
                is_told = True
                for child in running:
                    child.process.send_signal(signal.SIGINT)
            for child in [child for child in running if child.process.poll() is not None]:
                running.remove(child)
                child.finish(log, logs)
            time.sleep(_POLL)
        _leave(stop)


def _leave(stop: StopRequest) -> None:
    stop.leave("stopped; --resume goes on with the sweep")


@contextmanager
def _ended_at_once(running: list[_Child], log: Log) -> Iterator[None]:
    """Leave no child behind, whatever ends the block."""
    try:
        yield
    finally:
        for child in running:
            child.process.send_signal(signal.SIGINT)
        for child in running:
            try:
                child.process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            log.end(child.number, "interrupted")


@dataclass
class _Child:
    """A run in a process of its own. output: what it has printed."""

    number: int
    name: str
    process: subprocess.Popen[bytes]
    output: IO[bytes]

    @classmethod
    def start(cls, command: Sequence[str], number: int, config: Any, scratch: Path, jobs: int) -> _Child:
        """Start it. It gets its settings through a file that nobody else reads, and its share of the processors."""
        file = scratch / f"{number}.json"
        disk.write_file(file, json.dumps(config.settings()))
        flags = [
            f"--{name.replace('_', '-')}" for name in ("resume", "overwrite", "changed_data") if getattr(config, name)
        ]
        threads = str(max((os.cpu_count() or 1) // jobs, 1))
        paths = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), os.getcwd()])
        environment = {"OMP_NUM_THREADS": threads, **os.environ, "PYTHONPATH": paths, "NO_COLOR": "1"}
        output = tempfile.TemporaryFile()  # noqa: SIM115  (`finish` closes it)
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, *command, "--config", str(file), *flags],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
        )
        return cls(number, config.out.name, process, output)

    def finish(self, log: Log, logs: Path) -> None:
        """Keep its output, and note how it ended."""
        self.output.seek(0)
        text = self.output.read().decode(errors="replace")
        self.output.close()
        disk.make_folder(logs)
        disk.write_file(logs / f"{self.name}.txt", str(redacted(text)))
        code = self.process.returncode
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM):
            log.end(self.number, "interrupted")
        elif code:
            lines = [line for line in text.splitlines() if line.strip()]
            log.end(self.number, "failed", _one_line(lines[-1] if lines else f"exit code {code}"))
        else:
            log.end(self.number, "finished")


def _one_line(text: str) -> str:
    return " ".join(str(redacted(text)).split())[:1000]
