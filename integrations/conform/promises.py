"""The table of promises, and how a check says what it measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: (the `Server` under test) -> what was measured, where the promise holds.
Check = Callable[[Any], str]


class Broken(Exception):
    """The promise does not hold; the message says what was measured."""


class DoesNotApply(Exception):
    """The promise cannot be asked this way; the message says why."""


@dataclass(frozen=True)
class Promise:
    """One sentence that a server keeps.

    optional  a server may refuse the call, clearly: it is then "not offered"
    raw       asked by HTTP requests of our own, since the SDK cannot
    """

    id: str
    sentence: str
    look_at: str
    check: Check
    optional: bool = False
    raw: bool = False


#: All promises by id, in the order in which they are checked.
PROMISES: dict[str, Promise] = {}


def promise(
    id: str, sentence: str, look_at: str, *, optional: bool = False, raw: bool = False
) -> Callable[[Check], Check]:
    """Enter a check into the table."""

    def enter(check: Check) -> Check:
        PROMISES[id] = Promise(id, sentence, look_at, check, optional, raw)
        return check

    return enter
