"""Two tokenizations of one text, laid beside each other: spans of tokens between the places where both have a boundary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from ..errors import AlignmentError
from ..types import Datum, TensorData


@dataclass(frozen=True, eq=False)
class Alignment:
    """Which tokens of two tokenizations write the same part of a text.

    own, other   [L], [M] int64: the span that each token belongs to, 0, 1, ... in the order of the text; -1 for a token
                 without counterpart, which writes no text: the other side has no such token in this place
    spans        number of spans

    The tokens of a span write the same bytes on both sides, and together the spans write all of the text.
    """

    own: np.ndarray
    other: np.ndarray
    spans: int

    @property
    def firsts(self) -> tuple[np.ndarray, np.ndarray]:
        """([spans], [spans]): the first token of each span, on either side."""
        return tuple(np.searchsorted(_filled(side), np.arange(self.spans)) for side in (self.own, self.other))  # type: ignore[return-value]


def align(own: Sequence[bytes], other: Sequence[bytes]) -> Alignment:
    """The spans of two tokenizations of one text, from the bytes that each token writes (`Pieces.of`).

    A span ends where both tokenizations end a token: after the same byte, so also inside a character. Tokens that write
    nothing, such as the end of a turn, are paired in their order with the other side's in the same place.

    Raises AlignmentError, naming the byte, where the two write different texts.
    """
    _check_same_text(own, other)
    ends = [np.cumsum([len(piece) for piece in side], dtype=np.int64) for side in (own, other)]
    writes = [np.array([bool(piece) for piece in side], dtype=bool) for side in (own, other)]
    cuts = np.intersect1d(ends[0][writes[0]], ends[1][writes[1]])
    # A span of text sorts by the byte it ends at, a pair of silent tokens behind the text before it.
    keys = {(int(cut), 0): 0 for cut in cuts}
    of_silent = [_numbered_in_place(end[~does]) for end, does in zip(ends, writes, strict=True)]
    keys |= dict.fromkeys(set(of_silent[0]) & set(of_silent[1]), 0)
    number = {key: i for i, key in enumerate(sorted(keys))}
    sides = []
    for end, does, silent in zip(ends, writes, of_silent, strict=True):
        side = np.full(len(end), -1, dtype=np.int64)
        side[does] = [number[int(cuts[i]), 0] for i in np.searchsorted(cuts, end[does])]
        side[~does] = [number.get(key, -1) for key in silent]
        sides.append(side)
    return Alignment(sides[0], sides[1], len(number))


@dataclass(frozen=True)
class Crossed:
    """How many of a student's answer tokens a teacher with another tokenizer says something about.

    answers: answer tokens. compared: those that begin a span, before which both have read the same text. inside: those
    within a span, which the teacher writes in other tokens. unpaired: tokens without text, such as the end of a turn,
    that the teacher does not have in this place.
    """

    answers: int = 0
    compared: int = 0
    inside: int = 0
    unpaired: int = 0

    def __add__(self, other: Crossed) -> Crossed:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Crossed(*(a + b for a, b in pairs))


def with_teacher_positions(student: Datum, teacher: Datum, own: Any, other: Any) -> tuple[Datum, Crossed]:
    """The student's datum with what a teacher of another tokenizer reads, and which of its positions belongs to each of ours.

    student, teacher   the same answer in each one's tokens, marked by nonzero weights; their prompts may differ
    own, other         `Pieces` of each one's tokenizer
    returns            `teacher_tokens` [M + 1], all that the teacher reads; `teacher_positions` [N], -1 for none; and
                       `span_weights` [N], the weights of the positions that begin a span, 0 elsewhere. `weights` stay

    At a position that begins a span both have read the same text, so that their distributions over what comes next can be
    compared. Inside a span, where the teacher has no boundary, they cannot.

    Raises AlignmentError where the two answers are different texts.
    """
    targets = [d.loss_fn_inputs["target_tokens"].to_numpy() for d in (student, teacher)]
    weights = student.loss_fn_inputs["weights"].to_numpy()
    places = [np.flatnonzero(weights), np.flatnonzero(teacher.loss_fn_inputs["weights"].to_numpy())]
    pieces = [p.of(t[at].tolist()) for p, t, at in zip((own, other), targets, places, strict=True)]
    aligned = align(*pieces)
    first, other_first = aligned.firsts
    positions = np.full(len(weights), -1, dtype=np.int64)
    positions[places[0][first]] = places[1][other_first]
    read = [*teacher.model_input.to_ints(), int(targets[1][-1])]
    inputs = {
        **student.loss_fn_inputs,
        "teacher_tokens": TensorData(np.asarray(read, dtype=np.int64)),
        "teacher_positions": TensorData(positions),
        "span_weights": TensorData(np.where(positions >= 0, weights, 0).astype(np.float32)),
    }
    unpaired = int((aligned.own < 0).sum())
    answers = len(places[0])
    counts = Crossed(answers, aligned.spans, answers - aligned.spans - unpaired, unpaired)
    return Datum(student.model_input, inputs), counts


def _check_same_text(own: Sequence[bytes], other: Sequence[bytes]) -> None:
    texts = [b"".join(side) for side in (own, other)]
    if texts[0] == texts[1]:
        return
    shorter = min(map(len, texts))
    at = next((i for i in range(shorter) if texts[0][i] != texts[1][i]), shorter)
    shown = [text[max(0, at - 10) : at + 20].decode("utf-8", errors="replace") for text in texts]
    raise AlignmentError(
        f"the two tokenizations write different texts: they differ from byte {at} on, {shown[0]!r} and {shown[1]!r} "
        f"({len(texts[0])} and {len(texts[1])} bytes)"
    )


def _numbered_in_place(places: np.ndarray) -> list[tuple[int, int]]:
    """(place, 1 + how many before it in the same place) of each."""
    return [(place, i) for place, same in groupby(places.tolist()) for i, _ in enumerate(same, 1)]


def _filled(side: np.ndarray) -> np.ndarray:
    """Spans without their -1, so that they ascend: a token without a span counts to the one before it."""
    return np.maximum.accumulate(side) if len(side) else side
