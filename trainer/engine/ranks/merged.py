"""What each rank computed of a call as the whole call's: loss, metrics, random state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ....losses import stats
from ....losses.stats import Stat
from ...model.model import LoadedModel
from ...ranks import Ranks
from ..results import Collected, stat_of
from ..run.undo import RandomState, random_state, set_random_state


def merged(ranks: Ranks, own: Collected, *, is_whole: bool) -> Collected:
    """The loss and the metrics of all ranks' datums, the same on every rank; outputs stay this rank's.

    is_whole: every rank has seen the whole call, as of a loss that couples a batch, so there is nothing to add.
    """
    if ranks.size == 1 or is_whole:
        return own
    parts = ranks.gather((own.loss, own.datums_without_grad, packed(own.metrics)))[:: ranks.width]
    loss, without = (sum(values) for values in list(zip(*parts, strict=True))[:2])
    metrics = stats.merge(unpacked(metrics) for *_, metrics in parts)
    return Collected(loss, without, metrics, own.outputs)


def packed(metrics: Mapping[str, Stat]) -> dict[str, tuple[Any, Any, float]]:
    """Metrics as plain numbers."""
    return {name: (stat.kind, stat.total.tolist(), float(stat.count)) for name, stat in metrics.items()}


def unpacked(numbers: Mapping[str, tuple[Any, Any, float]]) -> dict[str, Stat]:
    """Metrics of `packed` numbers."""
    return {name: stat_of(kind, total, count) for name, (kind, total, count) in numbers.items()}


@contextmanager
def own_random_numbers(model: LoadedModel, *, drops: bool) -> Iterator[None]:
    """Inside, each rank drops by random numbers of its own (mates by the same); at the end all are in the state of the first.

    drops: whether anything is dropped; if not, all ranks draw the same numbers. After an error nothing is done.
    """
    ranks, device = model.ranks, model.device
    if drops and ranks.place > 0:
        state = b"".join(one.numpy().tobytes() for one in random_state(device))
        seed = int.from_bytes(hashlib.sha256(state + ranks.place.to_bytes(8, "little")).digest()[:8], "little")
        torch.manual_seed(seed)
    yield
    as_first(model)


def as_first(model: LoadedModel) -> None:
    """Give all ranks the random state of the first."""
    ranks, device = model.ranks, model.device
    if ranks.size > 1:
        states: list[RandomState | None] = ranks.gather(random_state(device) if ranks.is_first else None)
        assert states[0] is not None
        set_random_state(states[0], device)
