"""`HeldBack`: a rank's own mistake waits until all ranks have finished, so that none is left waiting in a collective."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...ranks import Ranks


@contextmanager
def out_of_memory_named(ranks: Ranks, tokens: int | None) -> Iterator[None]:
    """Around a call: where this rank of several runs out of memory, the error says which it is, and what to do.

    tokens: of a micro-batch at most. Nothing is tried again: the other ranks are waiting in the midst of a layer.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if ranks.size == 1:
            raise
        raise torch.OutOfMemoryError(
            f"out of memory on rank {ranks.rank} of {ranks.size} with tokens_per_micro_batch={tokens}: make it smaller, set "
            f"checkpoint_layers=True, or take more ranks. {error}"
        ) from error


class HeldBack:
    """The first exception of this rank in what it alone does, such as calling a loss's function; a single process raises it.

    An exception in the model itself is no such thing: other ranks wait for this one there, and nothing heals that.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.error: Exception | None = None

    @contextmanager
    def back(self) -> Iterator[None]:
        """Around work without collectives: what it raises is kept for `release`."""
        try:
            yield
        except Exception as error:
            if self._ranks.size == 1:
                raise
            self.error = self.error or error

    def release(self) -> None:
        """Raise what any rank held back, on every rank. All ranks call this together."""
        with self._ranks.agree():
            if self.error is not None:
                raise self.error
