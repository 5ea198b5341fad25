"""A sharded model's weights: a rank's own part of them, each one whole in turn, or all of them whole for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter

from ..model.model import LoadedModel
from ..shards import is_shard, local, whole


def local_parameters(model: LoadedModel) -> dict[str, Parameter]:
    """The trained parameters as this rank holds them, by name: shards in the same memory, [rows of this rank, ...], and replicated
    ones themselves. Rows are split as `torch.chunk` splits them, so the last ranks may hold fewer, or none.
    """
    return {name: Parameter(local(p)) if is_shard(p) else p for name, p in model.trainable().items()}


def replicated(model: LoadedModel) -> list[Parameter]:
    """The trained parameters that lie whole on every rank: adapters, and the value head beside them."""
    return [p for p in model.trainable().values() if not is_shard(p)]


def full_parameters(model: LoadedModel) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by its name in the module, whole on every rank while it is the current one. All ranks iterate together."""
    for name, parameter in model.module.named_parameters():
        yield name, whole(parameter)


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

    parts = [part for part in root.modules() if isinstance(part, FSDPModule)]
    try:
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        model.root = None  # whatever reads parameters can do so directly
        with torch.no_grad():
            yield
    finally:
        model.root = root
        for part in parts[1:]:  # the root itself is freed after its backward
            part.set_reshard_after_forward(True, recurse=False)
        model.reshard()
        model.agree_on_verdicts()
