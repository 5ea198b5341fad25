"""Gradients after a call's last backward: complete, and None where no rank has one."""

from __future__ import annotations

import torch

from ..model.model import LoadedModel
from ..ranks import Ranks
from ..shards import is_shard, local
from .root import RankModule


def sum_gradients(model: LoadedModel) -> None:
    """Add up the gradients of replicated parameters over the ranks, and drop those that no rank has. All ranks call it together.

    Call it after the last backward of a call, on the gradients of that call alone. FSDP has added the sharded ones up by then,
    and gave zeros to those without: they are None again, so that the optimizer leaves these parameters alone, as in one process.
    """
    if model.root is None:
        return
    assert isinstance(model.root, RankModule)
    parameters = model.trainable()
    used = model.root.used
    has = [name in used if is_shard(p) else p.grad is not None for name, p in parameters.items()]
    anywhere = dict(zip(parameters, model.ranks.max(has), strict=True))
    gradients = []
    for name, parameter in parameters.items():
        if not anywhere[name]:
            parameter.grad = None
        elif not is_shard(parameter):
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
    model.ranks.add_up(gradients)
    if model.ranks.mates is not None:
        _make_alike(model, model.root, model.ranks.mates)
    used.clear()


def _make_alike(model: LoadedModel, root: RankModule, mates: Ranks) -> None:
    """Give mates the same gradients of what they hold alike: the sum where each has a part, else the first one's.

    The first one's, since kernels of GPUs may add up in another order each time, and copies would drift apart.
    """
    gradients = {
        name: local(p.grad) for name, p in model.trainable().items() if name in root.copied and p.grad is not None
    }
    for name, gradient in gradients.items():
        if name not in root.partial and not mates.is_first:
            gradient.zero_()
    mates.add_up(list(gradients.values()))


def abandon(model: LoadedModel) -> None:
    """Forget the forwards and backwards of a call that failed, so that the next one begins anew. No collective."""
    if model.root is not None:
        assert isinstance(model.root, RankModule)
        model.root.used.clear()
        model.reshard()
