"""A process that is one rank: it reads calls from a pipe, runs each, and writes back what came of it. Run as a script."""

from __future__ import annotations

import faulthandler
import pickle
import signal
import sys
import traceback
import types
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lossbook.trainer.ranks import ALONE, Ranks

TESTS = Path(__file__).resolve().parents[2]


def main(pipe: Connection, rank: int, timeout: float) -> None:
    """Answer calls until the pipe ends. timeout: seconds after which a collective that waits for a rank raises."""
    torch.set_num_threads(1)
    faulthandler.register(signal.SIGUSR1)  # asks where a rank hangs
    sys.modules["tests"] = tests = types.ModuleType("tests")  # functions travel as module and name
    tests.__path__ = [str(TESTS)]
    ranks, joined = ALONE, ""
    while True:
        try:
            size, meeting, call = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            if meeting != joined:
                ranks, joined = join(rank, size, meeting, timeout), meeting
            function, args = pickle.loads(call)
            answer = pickle.dumps((function(ranks, *args), None, ""))
        except BaseException as error:
            answer = failure(error)
        pipe.send_bytes(answer)


def join(rank: int, size: int, meeting: str, timeout: float) -> Ranks:
    """Leave the processes that this one was with, and join those that meet at a file."""
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
    )
    return Ranks(rank, size, control=dist.group.WORLD, data=dist.group.WORLD)


def failure(error: BaseException) -> bytes:
    """An exception for the other end of the pipe, with its traceback as text."""
    where: Any = traceback.format_exc()
    try:
        answer = pickle.dumps((None, error, where))
        pickle.loads(answer)  # some are written but cannot be read
        return answer
    except Exception:
        return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}"), where))


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])), int(sys.argv[2]), float(sys.argv[3]))
