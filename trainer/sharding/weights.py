"""A sharded model's weights, whole on every rank for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..model.model import LoadedModel


@contextmanager
def gathered(model: LoadedModel) -> Iterator[None]:
    """Inside, every rank holds all weights and may run any number of forwards, without gradients and on its own.

    All ranks enter and leave together. What probes see inside counts for all ranks, the first one's before the others'.
    """
    root = model.root
    if root is None:
        yield
        return
    from torch.distributed.fsdp import FSDPModule  # whoever sharded the model has imported it

    from .tensor_parallel import SplitLinear

    parts = [part for part in root.modules() if isinstance(part, FSDPModule)]
    split = [part for part in root.modules() if isinstance(part, SplitLinear)]
    try:
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        for part in split:
            part.gather()
        model.root = None  # whatever reads parameters can do so directly
        with torch.no_grad():
            yield
    finally:
        model.root = root
        for part in split:
            part.whole = None
        for part in parts[1:]:  # the root itself is freed after its backward
            part.set_reshard_after_forward(True, recurse=False)
        model.reshard()
        model.agree_on_verdicts()
