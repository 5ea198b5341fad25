"""`Ranks`: the processes that train one model together, and the few things that they tell each other.

Every method but `agree`'s body is a collective: all ranks call it in the same order. A single process has no group, and each
method is then the identity.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..datums import errors

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes that train one model together, and which of them this is.

    rank     0 to size - 1
    size     the number of processes
    control  a process group of CPUs (gloo), for objects and numbers; None for a single process
    data     the process group for tensors on the model's device (nccl on GPUs, gloo on CPUs); None for a single process
    mates    the ranks that compute the same micro-batches as this one, each with its part of the layers' matrices (tensor
             parallelism): k ranks with numbers one after the other; None where each has micro-batches of its own

    Micro-batches are dealt to `places`, not to ranks, and what mates compute alike is counted once.
    """

    rank: int = 0
    size: int = 1
    control: dist.ProcessGroup | None = field(default=None, repr=False)
    data: dist.ProcessGroup | None = field(default=None, repr=False)
    mates: Ranks | None = None

    @property
    def width(self) -> int:
        """How many ranks compute the same micro-batches."""
        return 1 if self.mates is None else self.mates.size

    @property
    def place(self) -> int:
        """Which share of the micro-batches is this rank's, and its mates'."""
        return self.rank // self.width

    @property
    def places(self) -> int:
        """How many shares of the micro-batches there are."""
        return self.size // self.width

    @property
    def is_counted(self) -> bool:
        """Whether this rank's outputs count: of ranks with the same outputs, only the first counts."""
        return self.mates is None or self.mates.is_first

    @property
    def is_first(self) -> bool:
        """Whether this process does what is done once, such as writing a file."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Each rank's value, in order of ranks, on every rank. The values are small: they travel pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over the ranks, in float64 and in order of ranks: the same bits on every rank."""
        return [sum(values) for values in zip(*self._all(numbers), strict=True)]

    def max(self, numbers: Sequence[float]) -> list[float]:
        """The largest of each number over the ranks."""
        return [max(values) for values in zip(*self._all(numbers), strict=True)]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, in one all-reduce for each dtype."""
        if self.size == 1:
            return
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            own = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in own])
            dist.all_reduce(flat, group=self.data)
            for tensor, part in zip(own, flat.split([tensor.numel() for tensor in own]), strict=True):
                tensor.copy_(part.view_as(tensor))

    @contextmanager
    def agree(self) -> Iterator[None]:
        """Around work without collectives: an exception of one rank is raised by every rank, at the end.

        The rank that failed raises its own; each other rank raises that of the first rank that failed, by class and text.
        """
        if self.size == 1:
            yield
            return
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        failures = self.gather(None if own is None else described(own))
        if own is not None:
            vars(own).setdefault("origin", self.rank)
            raise own
        for rank, failure in enumerate(failures):
            if failure is not None:
                error = raised_again(*failure)
                vars(error)["origin"] = rank
                error.add_note(f"This was on rank {rank} of {self.size}.")
                raise error

    def _all(self, numbers: Sequence[float]) -> list[list[float]]:
        """Each rank's numbers."""
        own = [float(number) for number in numbers]
        if self.size == 1:
            return [own]
        tensors = [torch.empty(len(own), dtype=torch.float64) for _ in range(self.size)]
        dist.all_gather(tensors, torch.tensor(own, dtype=torch.float64), group=self.control)
        return [tensor.tolist() for tensor in tensors]


#: A single process.
ALONE = Ranks()


def check_width(size: int, ranks: int) -> None:
    """Raise ModelError unless `size` mates go into so many ranks."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise errors.ModelError(
            f"tensor_parallel is a whole number of ranks that share each matrix, at least 1, not {size!r}"
        )
    if ranks % size:
        raise errors.ModelError(f"tensor_parallel={size} does not divide {ranks} workers")


def described(error: BaseException) -> tuple[str, str]:
    """An exception as text, for another process: the name of its class, and its message."""
    return type(error).__name__, str(error)


def origin_of(error: BaseException) -> int | None:
    """The rank where an exception that all ranks raised together began; None if it did not pass through `agree`.

    After one that no `agree` saw, other ranks may wait in a collective for ever.
    """
    return vars(error).get("origin")


def raised_again(name: str, text: str) -> Exception:
    """The exception that another process described: of the same class where that is lossbook's or Python's, else a WorkerError."""
    kind = getattr(errors, name, None) or getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:  # UnicodeDecodeError, for one, takes five arguments
            pass
    return errors.WorkerError(f"{name}: {text}")
