"""The inputs of a datum by their names: dtypes, kinds, and limits of their values."""

from __future__ import annotations

from typing import Literal

TensorDtype = Literal["int64", "float32"]
#: Log-probabilities (at most 0), probabilities, 0 or 1, or any number.
KeyKind = Literal["logprob", "prob", "flag", "number"]

#: Keys whose dtype is part of the protocol. Any other key takes the dtype of its value.
KEY_DTYPES: dict[str, TensorDtype] = {
    "target_tokens": "int64",
    "weights": "float32",
    "advantages": "float32",
    "logprobs": "float32",
    "sampling_logprobs": "float32",
    "ref_logprobs": "float32",
    "old_values": "float32",
    "returns": "float32",
    "teacher_logprobs": "float32",
    "clip_low_threshold": "float32",
    "clip_high_threshold": "float32",
    "sequence_ratio_mask": "float32",
    "teacher_tokens": "int64",
    "teacher_positions": "int64",
}

#: Keys of another length than the datum's: a teacher may read other tokens, such as a longer prompt.
OF_ANOTHER_LENGTH = ("teacher_tokens",)
#: How the keys of inputs end that hold a vector of the whole datum.
VECTOR_ENDING = "_embedding"

#: The label by which other libraries mark positions to ignore. In lossbook a weight of 0 does so.
IGNORE_LABEL = -100
#: The highest log-probability that rounding explains, in nats.
MAX_LOGPROB = 1e-4


def key_kind(name: str) -> KeyKind:
    """The kind of numbers that go by this name: `ref_logprobs`, `teacher_probs`, `label`, `sequence_ratio_mask`, `returns`."""
    if name.endswith("logprobs"):
        return "logprob"
    if name.endswith("probs"):
        return "prob"
    is_flag = name.startswith("label") or name.endswith(("mask", "label", "labels"))
    return "flag" if is_flag else "number"


def is_of_another_length(key: str) -> bool:
    """Whether an input may have another number of entries than the datum has positions: what a teacher reads, and vectors."""
    return key in OF_ANOTHER_LENGTH or key.endswith(VECTOR_ENDING)
