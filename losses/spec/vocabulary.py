"""Outputs of several numbers per position: whole distributions, one number per token of the vocabulary, and vectors."""

from __future__ import annotations

from typing import Literal

#: Of the model in training, and of a teacher, which no gradient reaches.
STUDENT, TEACHER = "vocab_logprobs", "teacher_vocab_logprobs"
#: Model outputs of [T, V] numbers. A loss is called on a few positions at a time, so that never all of them are in memory.
VOCABULARY_OUTPUTS = (STUDENT, TEACHER)
#: The model's hidden states, [T, D].
TOKEN_EMBEDDINGS = "token_embeddings"
#: Model outputs of several numbers per position.
WIDE_OUTPUTS = (*VOCABULARY_OUTPUTS, TOKEN_EMBEDDINGS)
#: What a datum may hold about what a teacher reads.
TEACHER_KEYS = ("teacher_tokens", "teacher_positions")
#: Whether student and teacher must have the same tokens, and whether a teacher's others are given in the student's numbers.
Vocabularies = Literal["same", "any", "renumbered"]
