"""Notes on a row: which of its statements about what to learn were heeded, and which of its keys were not read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Notes:
    """What builders said about one row. The keys of the dicts are phrases for people, in the order of their first use.

    heeded   what the row says about learning, and was done
    unread   keys and parts that nothing reads
    read     row keys that a recipe reads itself
    """

    heeded: dict[str, None] = field(default_factory=dict)
    unread: dict[str, None] = field(default_factory=dict)
    read: dict[str, None] = field(default_factory=dict)

    def left_unread(self) -> list[str]:
        """What was not read, by a builder or a recipe."""
        return [name for name in self.unread if name not in self.read]


_watching: ContextVar[Notes | None] = ContextVar("lossbook_notes", default=None)


@contextmanager
def watch_notes() -> Iterator[Notes]:
    """Collect what builders note inside the `with` block."""
    notes = Notes()
    token = _watching.set(notes)
    try:
        yield notes
    finally:
        _watching.reset(token)


def note_heeded(what: str) -> None:
    """Report to the enclosing `watch_notes` that something the row says about learning was done."""
    if (notes := _watching.get()) is not None:
        notes.heeded[what] = None


def note_unread(what: str) -> None:
    """Report to the enclosing `watch_notes` that a key or part of the row has no effect."""
    if (notes := _watching.get()) is not None:
        notes.unread[what] = None


def note_read(what: str) -> None:
    """Report to the enclosing `watch_notes` that a recipe reads this key of the row."""
    if (notes := _watching.get()) is not None:
        notes.read[what] = None
