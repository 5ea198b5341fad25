"""Models are built under torch's own defaults, whatever the script has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def usual_defaults() -> Iterator[None]:
    """Inside, new tensors are float32 on the CPU where nothing else is said, as when a script sets no defaults.

    transformers and peft build modules under the defaults: under `set_default_dtype(torch.float64)` the same seed would give
    other weights, and under `set_default_device("meta")` none at all.
    """
    dtype, is_usual = torch.get_default_dtype(), torch.get_default_device().type == "cpu"
    if dtype != torch.float32:
        torch.set_default_dtype(torch.float32)
    try:
        with nullcontext() if is_usual else torch.device("cpu"):
            yield
    finally:
        if dtype != torch.float32:
            torch.set_default_dtype(dtype)
