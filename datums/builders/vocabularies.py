"""Two tokenizers' vocabularies: which tokens write the same text, and a numbering in which these have one number."""

from __future__ import annotations

from typing import Any

import numpy as np

from .pieces import Pieces


def renumbering(student: Any, teacher: Any, student_size: int, teacher_size: int) -> np.ndarray:
    """[V + U] int64: the teacher's ids in the student's order, for losses that compare tokens of two vocabularies.

    student, teacher             transformers tokenizers
    student_size, teacher_size   V, V': the rows of each one's head, which may be more than the tokenizer has tokens
    returns                      at v < V the teacher's id of the student's token v, -1 where it has none; then the U others

    Tokens are the same if they write the same bytes, however they are spelled; of several ids of one side that do, the
    first counts. Special tokens, which write nothing, are the same if they have one name; beyond that the two ends of a
    sequence (`eos_token`) are. Raises AlignmentError for a tokenizer whose spelling is unknown.
    """
    known = _numbers(teacher, teacher_size)
    order = np.full(student_size, -1, dtype=np.int64)
    for text, number in _numbers(student, student_size).items():
        order[number] = known.get(text, -1)
    ends = (student.eos_token_id, teacher.eos_token_id)
    if None not in ends and order[ends[0]] < 0 and ends[1] not in order:
        order[ends[0]] = ends[1]
    return np.concatenate([order, np.setdiff1d(np.arange(teacher_size), order)])


def _numbers(tokenizer: Any, size: int) -> dict[bytes | str, int]:
    """The first id of each text, or of each name of a special token."""
    names = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    ids = [number for number, name in enumerate(names) if name is not None]
    numbers: dict[bytes | str, int] = {}
    for number, piece in zip(ids, Pieces(tokenizer).each(ids), strict=True):
        numbers.setdefault(piece or names[number], number)
    return numbers
