"""`TorchrunGroup`: ranks as torchrun's processes. The script of rank 0 drives; the other ranks serve it, and run none of their own.

`torchrun --nproc-per-node N script.py`: each process runs the script up to its first model on workers. There rank 0 goes on,
as a client and as a rank of its own, and the others answer its calls until it ends. torchrun itself starts the script again
after a death (`--max-restarts`), so a script that is to go on begins by loading its newest checkpoint.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ...datums.errors import ModelError
from .groups import Group, client_state
from .rank import START, Answer, Rank, group_of_hosts

#: How long other ranks wait for rank 0 to call: it may be a notebook that somebody left for a week.
_PATIENCE = timedelta(days=365)
_END = "end"


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return dist.is_torchelastic_launched()


class TorchrunGroup(Group):
    """The processes of one torchrun. There is one such group in a process, which all services share.

    Raises ModelError where torchrun started another number of processes. On other ranks than 0 it never returns: it serves, and
    then ends the process.
    """

    remedy = "torchrun starts the script again where it was given --max-restarts, which then goes on from a checkpoint that it loads"

    def __init__(self, size: int, *, device: str | None = None, timeout: float) -> None:
        super().__init__(size, timeout)
        world = int(os.environ["WORLD_SIZE"])
        if size != world:
            raise ModelError(
                f"workers={size}, but torchrun started {world} processes: give both the same number, or let Ray start the "
                "workers, without torchrun"
            )
        on_gpu = torch.cuda.is_available() if device is None else device.startswith("cuda")
        own = f"cuda:{os.environ['LOCAL_RANK']}" if on_gpu else "cpu"
        self._rank = Rank(int(os.environ["RANK"]), size, device=own, timeout=timeout)
        store, *_ = next(iter(rendezvous("env://", timeout=timedelta(seconds=START))))
        self._rank.meet(PrefixStore("lossbook", store))
        place = self._rank.start("", 0)
        self._calls = group_of_hosts(_PATIENCE)
        self._replies = group_of_hosts(timedelta(seconds=timeout))
        if self._rank.rank > 0:
            self._serve(place)
        self.places = self._gathered(place)
        self.call("seed", *client_state())
        atexit.register(self.end, "the script of rank 0 has ended")

    def end(self, why: str) -> None:
        """Let the other ranks go, where they can still be reached. Dead ones torchrun ends, with all others."""
        if not self.ended:
            self.ended = why
            with contextlib.suppress(RuntimeError):
                _send(self._calls, _END, ())

    def _answers(self, name: str, arguments: tuple[Any, ...]) -> Mapping[int, Answer]:
        try:
            _send(self._calls, name, arguments)
        except RuntimeError as error:
            self._die(name, f"a worker died before {name}: {error}")
        own = self._rank.call(name, arguments)
        if not own.is_clean:  # it is out of step: the others may wait for it until they give up
            return {0: own}
        try:
            return dict(enumerate(self._gathered(own)))
        except RuntimeError as error:
            self._die(name, f"a worker died during {name}, or did not answer in {self.timeout:g} s: {error}")

    def _gathered(self, own: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        dist.gather_object(own, values if self._rank.rank == 0 else None, group=self._replies)
        return values

    def _serve(self, place: Any) -> None:
        """Answer rank 0's calls, then end this process."""
        self._gathered(place)
        while True:
            try:
                name, arguments = _receive(self._calls)
                if name == _END:
                    break
                answer = self._rank.call(name, arguments)
                self._gathered(answer)
            except RuntimeError as error:  # rank 0 or another one is gone
                print(f"rank {self._rank.rank}: {error}", file=sys.stderr)
                os._exit(1)
        sys.stdout.flush()
        os._exit(0)


def _send(group: dist.ProcessGroup, name: str, arguments: tuple[Any, ...]) -> None:
    dist.broadcast_object_list([name, arguments], group=group, group_src=0)


def _receive(group: dist.ProcessGroup) -> tuple[str, tuple[Any, ...]]:
    sent: list[Any] = [None, None]
    dist.broadcast_object_list(sent, group=group, group_src=0)
    return sent[0], sent[1]


_one: TorchrunGroup | None = None
_lock = threading.Lock()


def torchrun_group(size: int, *, device: str | None = None, timeout: float) -> TorchrunGroup:
    """The group of this process, which starts with the first call."""
    global _one
    with _lock:
        if _one is None:
            _one = TorchrunGroup(size, device=device, timeout=timeout)
        return _one
