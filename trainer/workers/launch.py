"""Where a service's models live: in this process, or on workers that a launcher starts."""

from __future__ import annotations

import functools
from collections.abc import Callable

from ..training.local_models import LocalModels
from ..training.protocol import Models
from .groups import Group, check_size, check_timeout
from .models import WorkersModels
from .ray_group import RayGroup
from .torchrun_group import torchrun_group, under_torchrun

#: Seconds that a call on workers may take: steps of large models take minutes, and so does reading their weights.
WORKER_TIMEOUT = 1800.0


def placed(local: LocalModels, workers: int | None, timeout: float) -> Models:
    """Models of this process, or the same on `workers` ranks.

    Raises ModelError for a number of workers below 1, and for a timeout that is no positive number of seconds.
    """
    if workers is None:
        return local
    join_torchrun(workers, local.device, timeout)
    kind = torchrun_group if under_torchrun() else RayGroup
    make: Callable[[], Group] = functools.partial(
        kind, check_size(workers), device=local.device, timeout=check_timeout(timeout)
    )
    return WorkersModels(local, make)


def join_torchrun(workers: int | None, device: str | None, timeout: float = WORKER_TIMEOUT) -> None:
    """Under torchrun, have all processes but the first serve it from here on, and end with it. Nothing happens elsewhere.

    A program calls it before it does what is to happen once, such as opening a folder.
    """
    if workers is not None and under_torchrun():
        torchrun_group(check_size(workers), device=device, timeout=check_timeout(timeout))
