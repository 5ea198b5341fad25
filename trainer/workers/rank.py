"""`Rank`: one worker process. It joins the process groups, then does what the client calls, as all its fellows do."""

from __future__ import annotations

import os
import socket
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from ...datums.errors import LossbookError
from ..ranks import ALONE, Ranks, described, origin_of
from .service import RankService

_tcp_store = dist.TCPStore  # pyright: ignore[reportPrivateImportUsage]  # documented, and left out of __all__
#: Seconds that processes have to start and import what they need, on a busy machine too.
START = 600.0


@dataclass(frozen=True)
class Answer:
    """What one rank says to a call: a value, or an error.

    error     name of its class, and its text
    is_clean  the error came before or outside any collective, so that the rank can go on with its fellows
    origin    the rank that the error comes from, where another rank's was raised here; None where each rank raised its own
    trace     of an error that is none of lossbook's
    warnings  what the call warned of: name of the class, and text
    """

    value: Any = None
    error: tuple[str, str] | None = None
    is_clean: bool = True
    origin: int | None = None
    trace: str = ""
    warnings: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a rank runs, for messages."""

    host: str
    pid: int
    device: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, {self.device}"


class Rank:
    """Process `rank` of `size`. Ray holds it as an actor, torchrun's processes hold one each; it knows of neither.

    device   "cpu", "cuda" or "cuda:1"; None for a GPU where there is one
    timeout  seconds after which a rank that waits for another in a collective gives up
    """

    def __init__(self, rank: int, size: int, *, device: str | None = None, timeout: float = 1800.0) -> None:
        self.rank, self.size = rank, size
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._timeout = timedelta(seconds=timeout)
        self._store: Store | None = None
        self._service: RankService | None = None

    def listen(self, host: str) -> int:
        """Open the store at which all ranks meet, on a port that the system chooses; returns the port."""
        patience = timedelta(seconds=START)
        store = _tcp_store(host, 0, self.size, is_master=True, timeout=patience, wait_for_workers=False)
        self._store = store
        return store.port

    def meet(self, store: Store) -> None:
        """Meet the other ranks at a store that somebody else opened."""
        self._store = store

    def start(self, host: str, port: int) -> Place:
        """Join the process groups. Returns when all ranks have."""
        if self._device.startswith("cuda"):
            torch.cuda.set_device(torch.device(self._device))
        self.serve(self._ranks(host, port))
        return Place(socket.gethostname(), os.getpid(), self._device)

    def serve(self, ranks: Ranks) -> None:
        """Be one of `ranks`, whose process groups are there."""
        self._service = RankService(ranks, self._device)

    def call(self, name: str, arguments: tuple[Any, ...]) -> Answer:
        """Do what the client called. An error is an answer too: exceptions of any class do not travel."""
        assert self._service is not None
        with warnings.catch_warnings(record=True) as caught:
            try:
                answer = Answer(self._service.call(name, *arguments))
            except Exception as error:
                answer = _failure(error, is_alone=self.size == 1)
        return replace(answer, warnings=_texts(caught))

    def stop(self) -> None:
        """Leave the process groups."""
        self._service = None
        if dist.is_initialized():
            dist.destroy_process_group()

    def _ranks(self, host: str, port: int) -> Ranks:
        """The process groups of this rank; a rank that is alone has none."""
        if self.size == 1:
            return ALONE
        patience = timedelta(seconds=START)
        store = self._store or _tcp_store(host, port, self.size, is_master=False, timeout=patience)
        self._store = store
        store.set(f"rank {self.rank}", "is here")
        store.wait([f"rank {rank}" for rank in range(self.size)], patience)
        backend = "nccl" if self._device.startswith("cuda") else "gloo"
        dist.init_process_group(
            backend, store=store, rank=self.rank, world_size=self.size, timeout=self._timeout, device_id=self._device_id
        )
        return Ranks(self.rank, self.size, group_of_hosts(self._timeout), dist.group.WORLD)

    @property
    def _device_id(self) -> torch.device | None:
        """The GPU that nccl is bound to."""
        if not self._device.startswith("cuda"):
            return None
        return torch.device("cuda", torch.cuda.current_device())


def group_of_hosts(timeout: timedelta) -> dist.ProcessGroup:
    """One more process group of all ranks, over gloo. All of them call it together."""
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    return group


def _failure(error: Exception, *, is_alone: bool) -> Answer:
    origin = origin_of(error)
    is_ours = isinstance(error, LossbookError)
    return Answer(
        error=described(error),
        is_clean=is_alone or is_ours or origin is not None,
        origin=origin,
        trace="" if is_ours else "".join(traceback.format_exception(error)),
    )


def _texts(caught: Iterable[warnings.WarningMessage]) -> tuple[tuple[str, str], ...]:
    return tuple(dict.fromkeys((one.category.__name__, str(one.message)) for one in caught))
