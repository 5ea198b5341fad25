"""Seeds, and what torch needs for deterministic algorithms on a GPU."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from ...datums.errors import ConfigError, ModelError

#: Workspaces with which cuBLAS computes the same bits each time (https://docs.nvidia.com/cuda/cublas/#results-reproducibility).
WORKSPACES = (":4096:8", ":16:8")
_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, those of all GPUs included.

    seed: a whole number from 0 to 2**64 - 1; NumPy takes it modulo 2**32

    Sampling and the initial values of adapters have seeds of their own; dropout draws from torch's generator, and losses and
    rewards may draw from any. Raises ConfigError for another seed, before a generator is touched.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise ConfigError(f"a seed is a whole number from 0 to 2**64 - 1, not {seed!r}")
    random.seed(int(seed))
    np.random.seed(int(seed) % 2**32)
    torch.manual_seed(int(seed))


def prepare_determinism(device: str | None) -> None:
    """Configure cuBLAS's workspace so that it is deterministic, for a service on a GPU.

    Raises ModelError where that comes too late: CUDA is in use with another workspace.
    """
    on_gpu = torch.cuda.is_available() if device is None else str(device).startswith("cuda")
    if not on_gpu or os.environ.get(_VARIABLE) in WORKSPACES:
        return
    if torch.cuda.is_initialized():
        raise ModelError(
            f"deterministic=True needs the environment variable {_VARIABLE}={WORKSPACES[0]} before CUDA is first used, and it "
            "is in use already: set it before Python starts"
        )
    os.environ[_VARIABLE] = WORKSPACES[0]
