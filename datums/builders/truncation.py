"""What is cut from a sequence that is too long, and a count of the labels that go with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ..errors import DatumDropped, TruncationError, did_you_mean

Truncation = Literal["error", "drop", "right", "left", "middle"]


@dataclass(frozen=True)
class Cut:
    """One sequence that was too long: its tokens and label tokens, and how many of them were kept.

    The first token is nobody's target, so it is never a label.
    """

    tokens: int
    tokens_kept: int
    labels: int
    labels_kept: int

    @property
    def labels_lost(self) -> int:
        """Label tokens that nothing is trained on any more."""
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
    """Tell whoever watches that a sequence lost tokens."""
    cuts = _watching.get()
    if cuts is not None:
        cuts.append(cut)


def note_dropped(dropped: Sequence[DatumDropped], everything: bool) -> None:
    """Tell whoever watches what a list of sequences lost; when that is everything, raise it as one DatumDropped."""
    if dropped and everything:
        dropped[0].labels = sum(error.labels for error in dropped)
        raise dropped[0]
    for error in dropped:
        note_cut(Cut(tokens=0, tokens_kept=0, labels=error.labels, labels_kept=0))


def truncate(labels: np.ndarray, max_length: int | None, truncation: Truncation) -> tuple[np.ndarray, np.ndarray]:
    """Which of L tokens stay, and which of those are still labels.

    labels      [L] bool, true where a token is one to be learned (its weight is not 0)
    max_length  tokens that may stay, counted before the shift by one: a datum of `max_length - 1` positions
    truncation  "error" refuses, "drop" raises DatumDropped for `build_datums` to count, "right" keeps the first
                tokens, "left" the last, "middle" half of them from each end
    returns     indices [M] of the tokens that stay, and [M] bool, which of them are labels: the first is not, and
                after a cut in the middle the first token of the second half is not, since it never followed the
                token now before it

    Raises TruncationError when the policy is "error", when no label would stay, or when `max_length` is below 2.
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
    kept, still = _cut(present, max_length, truncation)
    cut = Cut(length, max_length, int(present.sum()), int(still.sum()))
    if truncation in ("error", "drop") or (cut.labels and not cut.labels_kept):
        raise _refusal(cut, truncation, int(np.argmax(present)))
    note_cut(cut)
    return kept, still


def _cut(labels: np.ndarray, max_length: int, truncation: Truncation) -> tuple[np.ndarray, np.ndarray]:
    length = len(labels)
    head = {"left": 0, "middle": (max_length + 1) // 2}.get(truncation, max_length)
    kept = np.concatenate([np.arange(head), np.arange(length - (max_length - head), length)])
    still = labels[kept]
    if head < max_length:  # the first token after the gap (or the new first token) is predicted from nothing
        still[head] = False
    return kept, still


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
