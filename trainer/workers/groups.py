"""`Group`: N ranks that do what the client calls, all the same; and what the client is told when one of them fails."""

from __future__ import annotations

import builtins
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NoReturn

import torch

from ...datums import errors
from ...datums.errors import WorkerDiedError
from ..ranks import raised_again
from .rank import Answer, Place

#: Seconds in which the other ranks answer after one has answered with an error, or wait in a collective for it.
GRACE = 30.0


class Group(ABC):
    """N ranks. If one dies during a call, or does not answer within `timeout` + `GRACE` seconds, all are ended.

    Not thread-safe: two calls at one time could reach the ranks in different orders, and then wait for each other.
    """

    #: What the client can do after a death.
    remedy = (
        "load_state(path) on this client starts new ones and goes on from a checkpoint, as a new client does with any number of "
        "workers"
    )

    def __init__(self, size: int, timeout: float) -> None:
        self.size = size
        self.timeout = timeout
        self.places: list[Place] = []
        self.ended = ""  # why it does nothing any more

    def call(self, name: str, *arguments: Any) -> list[Any]:
        """What each rank answers, by rank.

        Raises the error of the rank that failed, by class and text, and then all go on; WorkerDiedError where they cannot.
        """
        if self.ended:
            raise WorkerDiedError(self.ended)
        answers = self._answers(name, arguments)
        failed = [rank for rank, answer in answers.items() if answer.error is not None]
        _warn(answers)
        if not failed:
            return [answers[rank].value for rank in range(self.size)]
        if len(failed) == self.size and all(answer.is_clean for answer in answers.values()):
            _raise(answers)
        rank = next((rank for rank in failed if not answers[rank].is_clean), failed[0])
        kind, text = answers[rank].error or ("", "")
        silent = [self.who(rank) for rank in range(self.size) if rank not in answers]
        besides = f"; no answer came from {', '.join(silent)}" if silent else ""
        why = f"{self.who(rank)} failed in the midst of {name}{besides}: {kind}: {text}"
        self._die(name, why, answers[rank].trace)

    def who(self, rank: int) -> str:
        """A rank, for messages."""
        where = f" ({self.places[rank]})" if self.places else ""
        return f"worker {rank} of {self.size}{where}"

    @abstractmethod
    def end(self, why: str) -> None:
        """End all ranks, at once and for good."""

    @abstractmethod
    def _answers(self, name: str, arguments: tuple[Any, ...]) -> Mapping[int, Answer]:
        """Each rank's answer; those of all, or of some where one is an error. Raises WorkerDiedError by `_die`."""

    def _die(self, name: str, why: str, trace: str = "") -> NoReturn:
        self.end(
            f"{why.rstrip('. ')}. All {self.size} workers were ended, and what they held is gone with what {name} did to it; "
            f"{self.remedy}"
        )
        error = WorkerDiedError(self.ended)
        if trace:
            error.add_note(trace)
        raise error


def check_size(workers: int) -> int:
    """The number of workers. Raises ModelError unless it is a whole number of at least 1."""
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise errors.ModelError(
            f"workers is a whole number of processes, at least 1, or None for this one, not {workers!r}"
        )
    return workers


def check_timeout(seconds: float) -> float:
    """Seconds until a worker counts as stuck. Raises ModelError unless it is a positive number."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
        raise errors.ModelError(f"worker_timeout is a positive number of seconds, not {seconds!r}")
    return float(seconds)


def client_state() -> tuple[int, bytes]:
    """The seed and the state of this process's generator, from which workers start, so that dropout draws as it would
    here.
    """
    return torch.initial_seed() % 2**64, torch.get_rng_state().numpy().tobytes()


def _raise(answers: Mapping[int, Answer]) -> NoReturn:
    """Raise the error that all ranks agree on, or the same that each has."""
    origins = [answer.origin for answer in answers.values() if answer.origin is not None]
    rank = min(origins, default=0)
    kind, text = answers[rank].error or ("", "")
    error = raised_again(kind, text)
    if len(set(origins)) == 1:
        error.add_note(f"This was on worker {rank} of {len(answers)}.")
    if answers[rank].trace:
        error.add_note(answers[rank].trace)
    raise error


def _warn(answers: Mapping[int, Answer]) -> None:
    """Warn here of what ranks warned of, once."""
    for kind, text in dict.fromkeys(warned for answer in answers.values() for warned in answer.warnings):
        category = getattr(errors, kind, None) or getattr(builtins, kind, None)
        known = isinstance(category, type) and issubclass(category, Warning)
        warnings.warn(text, category if known else UserWarning, stacklevel=4)
