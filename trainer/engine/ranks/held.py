"""`HeldBack`: a rank's own mistake waits until all ranks have finished, so that none is left waiting in a collective."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...ranks import Ranks


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
