"""Where a service's models live: in this process, or on workers that a launcher starts."""

from __future__ import annotations

import functools
from collections.abc import Callable

from ...datums.errors import ModelError
from ..ranks import check_width
from ..training.local_models import LocalModels
from ..training.protocol import Models
from .apart import SamplingWorkers
from .groups import Group, check_size, check_timeout
from .models import WorkersFrozen, WorkersModels, WorkersTrainer
from .ray_group import RayGroup
from .torchrun_group import torchrun_group, under_torchrun

#: Seconds that a call on workers may take: steps of large models take minutes, and so does reading their weights.
WORKER_TIMEOUT = 1800.0


def placed(local: LocalModels, workers: int | None, timeout: float, sampling_workers: int | None = None) -> Models:
    """Models of this process, or the same on `workers` ranks, sampled from on `sampling_workers` more processes.

    Raises ModelError for a number of workers below 1, sampling workers, tensor parallelism or a timeout where there are no workers,
    a timeout that is no positive number of seconds, and for 4-bit base weights, which are not sharded.
    """
    if sampling_workers is not None and (workers is None or under_torchrun()):
        raise ModelError(
            "sampling_workers are Ray's, beside workers that train: give workers too, and start the program without torchrun"
        )
    check_width(local.tensor_parallel, 0 if workers is None else check_size(workers))
    if workers is None:
        if local.tensor_parallel > 1:
            raise ModelError(
                "tensor_parallel is for workers, which share each matrix: give workers too, or leave it at 1"
            )
        if timeout != WORKER_TIMEOUT:
            raise ModelError("worker_timeout is for workers, and there are none: give workers too, or leave it out")
        return local
    if check_size(workers) > 1 and local.base_weights == "4bit":
        raise ModelError("4-bit base weights are not sharded over workers: take base_weights='full', or one process")
    join_torchrun(workers, local.device, timeout)
    kind = torchrun_group if under_torchrun() else RayGroup
    make: Callable[[], Group] = functools.partial(
        kind, check_size(workers), device=local.device, timeout=check_timeout(timeout)
    )
    return WorkersModels(
        local, make, None if sampling_workers is None else _apart(sampling_workers, local.device, timeout)
    )


def _apart(sampling_workers: int, device: str | None, timeout: float) -> Callable[[WorkersTrainer], WorkersFrozen]:
    """What gives a trainer's weights on sampling workers."""
    size = check_size(sampling_workers)
    return SamplingWorkers(functools.partial(RayGroup, size, device=device, timeout=check_timeout(timeout))).frozen


def join_torchrun(workers: int | None, device: str | None, timeout: float = WORKER_TIMEOUT) -> None:
    """Under torchrun, have all processes but the first serve it from here on, and end with it. Nothing happens elsewhere.

    A program calls it before it does what is to happen once, such as opening a folder.
    """
    if workers is not None and under_torchrun():
        torchrun_group(check_size(workers), device=device, timeout=check_timeout(timeout))
