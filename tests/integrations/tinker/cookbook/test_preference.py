"""preference/train_dpo.py of tinker-cookbook, unmodified."""

from __future__ import annotations

import math

import pytest

from .loops import Loops


@pytest.mark.slow
def test_train_dpo_starts_at_ln_2_and_comes_to_prefer_the_chosen_answers(loops: Loops) -> None:
    loops.script("preference")

    losses, accuracy = loops.numbers("dpo", "dpo_loss"), loops.numbers("dpo", "accuracy")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4), (
        "policy and reference have the same weights, seen two ways"
    )
    assert losses[5] < 0.5
    assert accuracy[5] == 1.0
    names = [(row["name"], row.get("rolling", False)) for row in loops.rows("dpo", "checkpoints.jsonl")]
    assert names == [
        ("000001", True),
        ("000002", False),
        ("000003", True),
        ("000004", False),
        ("000005", True),
        ("final", False),
    ]
