"""Ctrl-C and SIGTERM: finish the step, save, then exit with the code that shells expect. A second signal stops at once.

And dead workers: a recipe goes on by itself, as often as it was asked to.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any, Protocol, TypeVar

from ...datums.errors import WorkerDiedError


class StopAtOnce(KeyboardInterrupt):
    """A second signal arrived; `code` is the exit code that shells expect, 130 after Ctrl-C and 143 after SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.code = 128 + number


class StopRequest:
    """True once a signal asked the program to stop; check it after each step."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def leave(self, message: str) -> None:
        """If asked to stop, exit with 128 + the signal's number (130 for Ctrl-C, 143 for SIGTERM)."""
        if self.signal is not None:
            print(message, file=sys.stderr)
            raise SystemExit(128 + self.signal)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block, the first SIGINT or SIGTERM is a request to stop; each further one raises StopAtOnce.

    Outside the main thread, where Python allows no signal handlers, signals keep their usual effect.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request:
            raise StopAtOnce(number)
        request.signal = number
        print("\nstopping after this step; press again to stop at once", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Restartable(Protocol):
    """What a recipe's settings need for restarts: `restarts`, and pydantic's `model_copy`."""

    restarts: int

    def model_copy(self, *, update: dict[str, Any]) -> Any:
        """The settings with changes."""
        ...


Config = TypeVar("Config", bound=Restartable)
Result = TypeVar("Result")


def restarted(main: Callable[[Config], Result]) -> Callable[[Config], Result]:
    """A recipe's `main` that is called again, up to `config.restarts` times, after a worker died.

    It resumes the run from its last checkpoint with new workers, or begins again where none was saved.
    """

    @wraps(main)
    def whatever_happens(config: Config) -> Result:
        for left in reversed(range(config.restarts)):
            try:
                return main(config)
            except WorkerDiedError as error:
                print(f"{error}\nrestarting; {left} restarts are left", file=sys.stderr)
            config = config.model_copy(update={"resume": True, "overwrite": False})
        return main(config)

    return whatever_happens
