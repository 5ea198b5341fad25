"""A teacher's ids in the student's order: the same text has one number, whatever the tokenizers; no id is lost."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from lossbook.datums.builders.pieces import Pieces
from lossbook.datums.builders.vocabularies import renumbering
from lossbook.datums.errors import AlignmentError

from .other_tokenizers import BUILDERS


@pytest.mark.parametrize(("own", "other"), list(product(BUILDERS, BUILDERS)), ids="-".join)
def test_tokens_that_write_the_same_have_one_number_and_no_id_is_lost(own: str, other: str) -> None:
    student, teacher = BUILDERS[own](), BUILDERS[other]()
    sizes = len(student) + 3, len(teacher) + 2  # as heads that are padded
    order = renumbering(student, teacher, *sizes)
    shared = order[: sizes[0]]
    assert sorted(order[order >= 0].tolist()) == list(range(sizes[1]))
    texts = [Pieces(tokenizer).each(range(len(tokenizer))) for tokenizer in (student, teacher)]
    for number in np.flatnonzero(shared >= 0):
        assert texts[0][number] == texts[1][shared[number]]
    common = {text for text in texts[0] if text} & set(texts[1])
    written = [texts[0][n] for n in np.flatnonzero(shared >= 0) if texts[0][n]]
    assert sorted(written) == sorted(common)  # each text once
    assert (shared[len(student) :] == -1).all()
    assert len(common) >= (256 if "sentence-piece" not in (own, other) else 20)
    if own == other:
        assert (shared[: len(student)] == np.arange(len(student))).mean() > 0.9


def test_the_end_of_a_sequence_is_the_same_token_under_any_name_and_others_by_name() -> None:
    student, teacher = BUILDERS["bytes"](), BUILDERS["byte-level"]()
    teacher.add_special_tokens({"eos_token": "</s>", "additional_special_tokens": ["<|im_end|>", "<|other|>"]})
    order = renumbering(student, teacher, len(student), len(teacher))
    assert order[student.eos_token_id] == teacher.eos_token_id
    end = student.convert_tokens_to_ids("<|im_end|>")
    assert order[end] == teacher.convert_tokens_to_ids("<|im_end|>")
    assert order[student.convert_tokens_to_ids("<|pad|>")] == -1
    assert teacher.convert_tokens_to_ids("<|other|>") in order[len(student) :]


def test_the_end_of_a_sequence_goes_by_its_name_where_it_has_one() -> None:
    student, teacher = BUILDERS["bytes"](), BUILDERS["byte-level"]()
    teacher.add_special_tokens({"eos_token": "<|im_end|>"})
    order = renumbering(student, teacher, len(student), len(teacher))
    assert order[student.convert_tokens_to_ids("<|im_end|>")] == teacher.eos_token_id
    assert order[student.eos_token_id] == -1


def test_a_token_that_is_spelled_unlike_the_others_is_named() -> None:
    class Odd:
        all_special_ids = ()
        names = ("a", "\u0120b", "\u2603")

        def __call__(self, text: str, **options: bool) -> dict[str, list[int]]:
            return {"input_ids": [0, 1]}

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [self.names[i] for i in ids]

        def decode(self, ids: list[int], **options: bool) -> str:
            return "a b"

    assert Pieces(Odd()).each([0, 1]) == [b"a", b" b"]
    with pytest.raises(AlignmentError, match="token 2 of a Odd is not spelled as others are"):
        Pieces(Odd()).each([0, 1, 2])
