"""Whose turn it is: start-time fair queueing (Goyal et al. 1996, doi:10.1145/248156.248171) of seconds."""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

#: What a turn costs at least, so that those whose calls take no time still go round.
LEAST_SECONDS = 1e-3


class Turns(Generic[K]):
    """Keys that have work, each with the seconds that it has used; who has used least is next.

    A key that comes back begins where the others are: it saves nothing up while it has no work, and what it used before is
    held against it only as far as the others have used less. So a newcomer waits for what runs, and for one turn of each other
    key that had used as little.
    """

    def __init__(self) -> None:
        self._now = 0.0  # the seconds that the last key to be chosen had used
        self._used: dict[K, float] = {}
        self._came: dict[K, int] = {}  # keys that have work, by when they came or last had a turn
        self._numbers = itertools.count()

    def __contains__(self, key: K) -> bool:
        return key in self._came

    def __len__(self) -> int:
        return len(self._came)

    def enter(self, key: K) -> None:
        """Note that a key has work."""
        if key not in self._came:
            self._used[key] = max(self._used.get(key, 0.0), self._now)
            self._came[key] = next(self._numbers)

    def leave(self, key: K) -> None:
        """Note that a key has no work."""
        self._came.pop(key, None)
        self._forget()

    def charge(self, key: K, seconds: float) -> None:
        """Hold a turn's seconds against a key, whether it has more work or not."""
        self._used[key] = max(self._used.get(key, 0.0), self._now) + max(seconds, LEAST_SECONDS)
        if key in self._came:
            self._came[key] = next(self._numbers)

    def next(self) -> K | None:
        """The key whose turn it is; None where no key has work."""
        if not self._came:
            return None
        key = min(self._came, key=lambda one: (self._used[one], self._came[one]))
        self._now = max(self._now, self._used[key])
        return key

    def _forget(self) -> None:
        """Drop keys without work whose past says nothing any more."""
        if len(self._used) > 2 * len(self._came) + 64:
            self._used = {key: used for key, used in self._used.items() if key in self._came or used > self._now}
