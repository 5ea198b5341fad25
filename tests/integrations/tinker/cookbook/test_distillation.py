"""The three distillation loops of tinker-cookbook, unmodified."""

from __future__ import annotations

import pytest

from .loops import Loops


@pytest.fixture
def distillation(loops: Loops) -> Loops:
    loops.script("distillation")
    return loops


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "metric", "share"),
    [
        pytest.param("on_policy", "teacher_kl", 0.65, id="train_on_policy: reverse KL from the teacher, on samples"),
        pytest.param(
            "off_policy", "train/loss:sum", 0.6, id="train_off_policy: cross-entropy to the teacher's likeliest tokens"
        ),
        pytest.param("sdft", "test/answers/nll", 0.6, id="sdft: nll of the answers that only the teacher is shown"),
        pytest.param(
            "sdft_reverse", "sdft/reverse_kl_mean", 0.6, id="sdft in reverse: KL on the teacher's likeliest tokens"
        ),
    ],
)
def test_distillation_falls_to_a_share_of_what_it_was(distillation: Loops, run: str, metric: str, share: float) -> None:
    first, last = distillation.first_and_last(run, metric)
    assert first > 0  # a mean over samples may come out below nothing in the end
    assert last < share * first
    assert [row["name"] for row in distillation.rows(run, "checkpoints.jsonl")][-1] == "final"
