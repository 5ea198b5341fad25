"""What an input or output holds, by its name."""

from __future__ import annotations

from typing import Literal

#: Log-probabilities (at most 0), probabilities, 0 or 1, or any number.
KeyKind = Literal["logprob", "prob", "flag", "number"]


def key_kind(name: str) -> KeyKind:
    """The kind of numbers that go by this name: `ref_logprobs`, `teacher_probs`, `label`, `sequence_ratio_mask`, `returns`."""
    if name.endswith("logprobs"):
        return "logprob"
    if name.endswith("probs"):
        return "prob"
    is_flag = name.startswith("label") or name.endswith(("mask", "label", "labels"))
    return "flag" if is_flag else "number"
