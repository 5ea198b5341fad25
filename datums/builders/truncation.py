"""Truncation of sequences that are too long, and a count of the label tokens that are lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import get_args

import numpy as np

from ..choices import Truncation
from ..errors import DatumDropped, TruncationError, did_you_mean


@dataclass(frozen=True)
class Cut:
    """A truncated sequence: its tokens and label tokens, and how many of each were kept.

    The first token is never a target, so it is never a label.
    """

    tokens: int
    tokens_kept: int
    labels: int
    labels_kept: int

    @property
    def labels_lost(self) -> int:
        """Label tokens that were cut off."""
        return self.labels - self.labels_kept


_watching: ContextVar[list[Cut] | None] = ContextVar("lossbook_cuts", default=None)


@contextmanager
def watch_cuts() -> Iterator[list[Cut]]:
    """Collect what builders cut inside the `with` block."""
    cuts: list[Cut] = []
    token = _watching.set(cuts)
    try:
        yield cuts
    finally:
        _watching.reset(token)


def note_cut(cut: Cut) -> None:
    """Report a cut to the enclosing `watch_cuts`, if there is one."""
    cuts = _watching.get()
    if cuts is not None:
        cuts.append(cut)


def note_dropped(dropped: Sequence[DatumDropped], everything: bool) -> None:
    """Report dropped sequences as cuts. If every sequence was dropped, raise one DatumDropped for all of them."""
    if dropped and everything:
        dropped[0].labels = sum(error.labels for error in dropped)
        raise dropped[0]
    for error in dropped:
        note_cut(Cut(tokens=0, tokens_kept=0, labels=error.labels, labels_kept=0))


def truncate(labels: np.ndarray, max_length: int | None, truncation: Truncation) -> tuple[np.ndarray, np.ndarray]:
    """Which of L tokens are kept, and which of those are still labels.

    labels      [L] bool, true for label tokens (weight not 0)
    max_length  most tokens to keep, counted before the shift by one: a datum of `max_length - 1` positions
    truncation  "error" raises TruncationError, "drop" DatumDropped, which `build_datums` counts; "right" keeps the first
                tokens, "left" the last, "middle" half of them from each end
    returns     indices [M] of the kept tokens, and [M] bool, which of them are labels. The first is not. After a cut in
                the middle the first token of the second half is not, since it did not follow the token now before it

    Raises TruncationError under "error", when no label would be kept, or when `max_length` is below 2.
    """
    if truncation not in get_args(Truncation):
        known = ", ".join(get_args(Truncation))
        hint = did_you_mean(str(truncation), get_args(Truncation))
        raise TruncationError(f"unknown truncation {truncation!r}; known are {known}.{hint}")
    if max_length is not None and (not isinstance(max_length, int) or max_length < 2):
        raise TruncationError(f"max_length must be at least 2 tokens, one to read and one to learn, not {max_length}")
    length = len(labels)
    present = labels.copy()
    present[:1] = False
    if max_length is None or length <= max_length:
        return np.arange(length), present
    kept, still_labels = _cut(present, max_length, truncation)
    cut = Cut(length, max_length, int(present.sum()), int(still_labels.sum()))
    if truncation in ("error", "drop") or (cut.labels and not cut.labels_kept):
        raise _refusal(cut, truncation, int(np.argmax(present)))
    note_cut(cut)
    return kept, still_labels


def _cut(labels: np.ndarray, max_length: int, truncation: Truncation) -> tuple[np.ndarray, np.ndarray]:
    length = len(labels)
    head = {"left": 0, "middle": (max_length + 1) // 2}.get(truncation, max_length)
    kept = np.concatenate([np.arange(head), np.arange(length - (max_length - head), length)])
    still_labels = labels[kept]
    if head < max_length:  # the first token after the cut has lost the token before it
        still_labels[head] = False
    return kept, still_labels


def _refusal(cut: Cut, truncation: Truncation, first_label: int) -> TruncationError:
    too_long = f"{cut.tokens} tokens are longer than max_length={cut.tokens_kept} (counted before the shift by one)"
    if truncation == "drop":
        error = DatumDropped(f"{too_long}; truncation='drop' leaves out the sequence and its {cut.labels} label tokens")
    elif truncation == "error":
        error = TruncationError(
            f"{too_long}. Keeping the first {cut.tokens_kept} would lose {cut.labels_lost} of {cut.labels} label "
            "tokens. Raise max_length, or choose truncation='right', 'left', 'middle' or 'drop'"
        )
    else:
        error = TruncationError(
            f"{too_long}, and truncation={truncation!r} would remove all {cut.labels} label tokens (the first is "
            f"token {first_label}), leaving nothing to learn. Raise max_length, or cut elsewhere"
        )
    error.labels = cut.labels
    return error
