"""Which path a device takes. Every choice that is about speed asks `path_of`, so that a CPU can take a GPU's path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

#: "cuda" has kernels that no other device has; "other" is any other accelerator.
Path = Literal["cpu", "cuda", "other"]

_cpu_path: Path = "cpu"


def path_of(device: torch.device) -> Path:
    """The code path for tensors on a device: tile sizes, packing, attention, fused layers, and when numbers are read
    back.

    What only CUDA itself has (its random state, its free memory, pinned memory) is asked of `device.type`.
    """
    if device.type == "cpu":
        return _cpu_path
    return "cuda" if device.type == "cuda" else "other"


@contextmanager
def taking_gpu_path() -> Iterator[None]:
    """Inside, CPUs take the path of CUDA, in all threads: for tests and counts. Make models and clients inside, too."""
    global _cpu_path
    before, _cpu_path = _cpu_path, "cuda"
    try:
        yield
    finally:
        _cpu_path = before
