"""Processes that train one model together, for scaling.py: each steps when it is told to, and says what that took."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

import lossbook as lb
from lossbook.datums.types import AdamParams
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.ranks import ALONE, Ranks
from lossbook.trainer.training.local_models import LocalModels
from lossbook.trainer.training.model_trainer import ModelTrainer

#: With these glibc gives back what an all-gather leaves; they have to be there when a process starts.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
#: Seconds after which a rank that waits for another gives up.
TIMEOUT = 300.0


@dataclass(frozen=True)
class Work:
    """What is trained: a model's folder; all weights or adapters; tokens of a micro-batch; "gloo" on CPUs, "nccl" on GPUs."""

    folder: str
    all_weights: bool
    tokens: int
    backend: str


@dataclass(frozen=True)
class Taken:
    """What one rank took for a step: seconds, those that its own thread computed, and those that its other threads did.

    rest, peak  bytes of a GPU that are allocated after the step, and at most during it; 0 on a CPU, see rank_memory.py
    """

    seconds: float
    computing: float
    beside: float
    rest: int
    peak: int


def datums_of(lengths: Sequence[int]) -> list[lb.Datum]:
    """Sequences of these lengths, every token trained on. No two begin alike: what they share would be computed once."""
    return [
        lb.datum_from_tokens_weights([(17 * i + k) % 251 for k in range(n + 1)], [1.0] * (n + 1))
        for i, n in enumerate(lengths)
    ]


class RankGroup:
    """`size` processes, on GPUs from `device` on where they have any. They wait for each other, and for nothing else."""

    def __init__(self, size: int, work: Work, meeting: Path, *, device: int = 0) -> None:
        os.environ.update(ALLOCATOR | {"OMP_NUM_THREADS": "1"})
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            here, there = context.Pipe()
            process = context.Process(
                target=serve, args=(there, rank, size, str(meeting), work, device + rank), daemon=True
            )
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def begin(self, lengths: Sequence[int]) -> None:
        """Let all ranks make a step on sequences of these lengths."""
        for pipe in self._pipes:
            pipe.send(list(lengths))

    def end(self) -> list[Taken]:
        """What it took on each rank. Raises RuntimeError where one does not answer."""
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(2 * TIMEOUT):
                raise RuntimeError(f"rank {rank} of {len(self._pipes)} does not answer")
        return [Taken(**pipe.recv()) for pipe in self._pipes]

    def step(self, lengths: Sequence[int]) -> list[Taken]:
        """Both."""
        self.begin(lengths)
        return self.end()

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            process.kill()


def serve(pipe: Connection, rank: int, size: int, meeting: str, work: Work, gpu: int) -> None:
    """Be one rank until the pipe ends."""
    torch.set_num_threads(1)
    on_gpu = work.backend == "nccl"
    device = f"cuda:{gpu}" if on_gpu else "cpu"
    if on_gpu:
        torch.cuda.set_device(gpu)
    ranks = joined(rank, size, meeting, work.backend)
    models = LocalModels(EngineSettings(tokens_per_micro_batch=work.tokens), device=device, ranks=ranks)
    if work.all_weights:
        trainer = models.all_weights(work.folder, value_head=False)
    else:
        trainer = models.adapters(work.folder, value_head=False, rank=16, seed=0)
    while True:
        try:
            lengths = pipe.recv()
        except EOFError:
            sys.exit(0)
        pipe.send(asdict(step(trainer, datums_of(lengths), on_gpu=on_gpu)))


def joined(rank: int, size: int, meeting: str, backend: str) -> Ranks:
    """The process groups of this rank; none for one alone."""
    if size == 1:
        return ALONE
    dist.init_process_group(
        backend, init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=timedelta(seconds=TIMEOUT)
    )
    control = dist.new_group(backend="gloo")
    assert isinstance(control, dist.ProcessGroup)
    return Ranks(rank, size, control=control, data=dist.group.WORLD)


def step(trainer: ModelTrainer, datums: Sequence[lb.Datum], *, on_gpu: bool) -> Taken:
    """Forward, backward and an optimizer step."""
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start, own, all_threads = time.perf_counter(), time.thread_time(), time.process_time()
    trainer.forward_backward(datums, lb.get_loss("cross_entropy", reduction="token-mean"), "mean")
    trainer.optim_step(AdamParams(learning_rate=1e-4), None)
    if on_gpu:
        torch.cuda.synchronize()
    taken, own = time.perf_counter() - start, time.thread_time() - own
    beside = time.process_time() - all_threads - own
    held = (torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()) if on_gpu else (0, 0)
    return Taken(taken, own, beside, *held)
