"""Two tokenizations of one text: spans cover it, in order, whatever the tokenizers; what cannot be aligned is counted or refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lossbook import datum_from_tokens_weights
from lossbook.datums.builders.alignment import Alignment, Crossed, align, with_teacher_positions
from lossbook.datums.builders.pieces import Pieces
from lossbook.datums.errors import AlignmentError
from lossbook.trainer.model.tiny import build_tiny_tokenizer

from .other_tokenizers import BUILDERS


def cut(text: bytes, places: set[int], silent: list[int]) -> list[bytes]:
    """The text cut at some places, with tokens that write nothing before the tokens of these numbers."""
    edges = [0, *sorted(p for p in places if 0 < p < len(text)), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges) if a < b]
    for place in sorted(silent, reverse=True):
        pieces.insert(min(place, len(pieces)), b"")
    return pieces


PLACES = st.sets(st.integers(0, 12))
SILENT = st.lists(st.integers(0, 5), max_size=2)


@given(text=st.binary(max_size=12), places=st.tuples(PLACES, PLACES), silent=st.tuples(SILENT, SILENT))
@example(text=b"ab", places=({1}, set()), silent=([2], [1]))
def test_spans_cover_the_text_in_order_and_write_the_same_on_both_sides(text: bytes, places: Any, silent: Any) -> None:
    own, other = (cut(text, *given) for given in zip(places, silent, strict=True))
    aligned = align(own, other)
    written = [spans_of(aligned, side, numbers) for side, numbers in ((own, aligned.own), (other, aligned.other))]
    assert written[0] == written[1]
    assert b"".join(written[0]) == text
    for side, numbers, first in zip((own, other), (aligned.own, aligned.other), aligned.firsts, strict=True):
        placed = numbers[numbers >= 0]
        assert (np.diff(placed) >= 0).all()  # in order
        assert set(placed.tolist()) == set(range(aligned.spans))  # none is empty
        assert all(not side[i] for i in np.flatnonzero(numbers < 0))  # only what writes nothing is without counterpart
        assert [int(np.flatnonzero(numbers == k)[0]) for k in range(aligned.spans)] == first.tolist()
    # As fine as can be: inside a span of text the two have no boundary in common.
    inner = [{len(b"".join(side[: i + 1])) for i, piece in enumerate(side) if piece} for side in (own, other)]
    assert sum(bool(span) for span in written[0]) == len(inner[0] & inner[1])


def spans_of(aligned: Alignment, pieces: list[bytes], numbers: np.ndarray) -> list[bytes]:
    """What each span writes."""
    return [b"".join(p for p, n in zip(pieces, numbers, strict=True) if n == k) for k in range(aligned.spans)]


def test_the_end_of_a_turn_is_paired_with_the_other_sides() -> None:
    aligned = align([b"He", b"llo", b""], [b"Hello", b"", b""])
    assert aligned.own.tolist() == [0, 0, 1]
    assert aligned.other.tolist() == [0, 1, -1]
    assert [x.tolist() for x in aligned.firsts] == [[0, 2], [0, 1]]


def test_of_nothing_there_are_no_spans() -> None:
    aligned = align([], [b""])
    assert (aligned.own.tolist(), aligned.other.tolist(), aligned.spans) == ([], [-1], 0)
    assert [x.tolist() for x in aligned.firsts] == [[], []]


@pytest.mark.parametrize(
    ("own", "other", "message"),
    [
        ([b"abc"], [b"ab", b"d"], "differ from byte 2 on, 'abc' and 'abd' (3 and 3 bytes)"),
        ([b"abc"], [b"ab"], "differ from byte 2 on, 'abc' and 'ab' (3 and 2 bytes)"),
        ([], [b"x"], "differ from byte 0 on, '' and 'x' (0 and 1 bytes)"),
    ],
    ids=["another letter", "an end", "nothing"],
)
def test_different_texts_are_refused_naming_the_byte(own: list[bytes], other: list[bytes], message: str) -> None:
    with pytest.raises(AlignmentError) as caught:
        align(own, other)
    assert message in str(caught.value)


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {name: build() for name, build in BUILDERS.items()}


#: Without "<", which begins the special tokens that the byte tokenizer reads also in plain text.
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<"), min_size=1, max_size=12)


@pytest.mark.parametrize("kind", list(BUILDERS))
@given(text=TEXTS)
@example(text="the cat's  naïve 日本 🙂 hat")
def test_pieces_are_the_bytes_of_the_text_whatever_the_tokenizer(tokenizers: Any, kind: str, text: str) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = Pieces(tokenizer).of(ids)
    assert len(pieces) == len(ids)
    assert b"".join(pieces) == tokenizer.decode(ids).encode()
    bytes_of = Pieces(tokenizers["bytes"]).of(tokenizers["bytes"](text)["input_ids"])
    if tokenizer.decode(ids) == text:
        assert align(pieces, bytes_of).spans == len([p for p in pieces if p])  # bytes have every boundary


def test_tokens_that_end_inside_a_character_are_aligned_by_bytes() -> None:
    tokenizer = build_tiny_tokenizer()
    pieces = Pieces(tokenizer).of(tokenizer("é")["input_ids"])
    assert pieces == [b"\xc3", b"\xa9"]
    assert align(pieces, ["é".encode()]).own.tolist() == [0, 0]
    assert align(pieces, pieces).own.tolist() == [0, 1]
    assert Pieces(tokenizer).of([0xC3]) == [b"\xc3"]  # also where the text is cut inside a character


def test_special_tokens_write_nothing_and_added_ones_themselves() -> None:
    tokenizer = build_tiny_tokenizer()
    tokenizer.add_tokens(["<think>"])
    ids = tokenizer("a<think>b<|im_end|>")["input_ids"]
    assert Pieces(tokenizer).of(ids) == [b"a", b"<think>", b"b", b""]


def test_a_tokenizer_that_does_not_spell_its_text_is_refused() -> None:
    class Reversed:
        all_special_ids = ()

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return ["ab" for _ in ids]

        def decode(self, ids: list[int], **options: Any) -> str:
            return "ba" * len(ids)

    with pytest.raises(AlignmentError, match="the 2 tokens of a Reversed do not spell the text"):
        Pieces(Reversed()).of([0, 1])


class Letters:
    """`Pieces` of a tokenizer given as a list of what its tokens write."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    def of(self, tokens: list[int]) -> list[bytes]:
        return [self.pieces[i] for i in tokens]


def test_a_datum_says_which_of_the_teachers_positions_belong_to_its_own() -> None:
    own, other = Letters(b"?", b"He", b"llo", b" you", b""), Letters(b"??", b"Hello", b" y", b"ou", b"")
    student = datum_from_tokens_weights([0, 1, 2, 3, 4], [0, 1, 1, 2, 1])
    teacher = datum_from_tokens_weights([0, 0, 1, 2, 3, 4], [0, 0, 1, 1, 1, 1])
    datum, counts = with_teacher_positions(student, teacher, own, other)
    inputs = datum.loss_fn_inputs
    assert inputs["teacher_tokens"].data == [0, 0, 1, 2, 3, 4]
    # Student: He | llo | _you | end at positions 0 to 3; teacher: Hello | _y | ou | end at its positions 1 to 4.
    assert inputs["teacher_positions"].data == [1, -1, 2, 4]
    assert inputs["span_weights"].data == [1.0, 0.0, 2.0, 1.0]
    assert inputs["weights"].data == [1.0, 1.0, 2.0, 1.0]
    assert counts == Crossed(answers=4, compared=3, inside=1, unpaired=0)
    assert counts + counts == Crossed(8, 6, 2, 0)


def test_an_end_that_the_teacher_does_not_write_is_counted_and_has_no_weight() -> None:
    pieces = Letters(b"?", b"Hi", b"")
    student = datum_from_tokens_weights([0, 1, 2], [0, 1, 1])
    teacher = datum_from_tokens_weights([0, 1], [0, 1])
    datum, counts = with_teacher_positions(student, teacher, pieces, pieces)
    assert datum.loss_fn_inputs["teacher_positions"].data == [0, -1]
    assert datum.loss_fn_inputs["span_weights"].data == [1.0, 0.0]
    assert counts == Crossed(answers=2, compared=1, inside=0, unpaired=1)
