"""Where a service's models live: in this process, or on workers that a launcher starts."""

from __future__ import annotations

import functools
from collections.abc import Callable

from ..training.local_models import LocalModels
from ..training.protocol import Models
from .groups import Group, check_size, check_timeout
from .models import WorkersModels
from .ray_group import RayGroup


def placed(local: LocalModels, workers: int | None, timeout: float) -> Models:
    """Models of this process, or the same on `workers` ranks.

    Raises ModelError for a number of workers below 1, and for a timeout that is no positive number of seconds.
    """
    return local if workers is None else WorkersModels(local, _launcher(workers, local.device, timeout))


def _launcher(workers: int, device: str | None, timeout: float) -> Callable[[], Group]:
    return functools.partial(RayGroup, check_size(workers), device=device, timeout=check_timeout(timeout))
