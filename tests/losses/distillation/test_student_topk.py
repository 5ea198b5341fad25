"""Distillation over the student's own likeliest tokens: numbers by hand, and the whole vocabulary as its end."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lossbook import get_loss

from .test_full import compared

LN2, LN3 = math.log(2), math.log(3)
S, T = [0.5, 0.3, 0.2], [0.25, 0.25, 0.5]


@pytest.mark.parametrize(
    ("config", "loss", "slopes"),
    [
        # token 0 and the rest: student (1/2, 1/2), teacher (1/4, 3/4). KL(s || t) = 1/2 ln 2 + 1/2 ln 2/3; its slope in s_0 is
        # ln 2 - ln 2/3 = ln 3, and s_0's in the logits (1/4, -1/2 3/10, -1/2 2/10)
        pytest.param(
            {"likeliest": 1}, 0.5 * math.log(4 / 3), [LN3 / 4, -0.15 * LN3, -0.1 * LN3], id="reverse, one and the rest"
        ),
        # KL(t || s) = 1/4 ln 1/2 + 3/4 ln 3/2; slope in s_0: -1/4 / 1/2 + 3/4 / 1/2 = 1
        pytest.param(
            {"likeliest": 1, "beta": 0.0},
            -0.25 * LN2 + 0.75 * math.log(1.5),
            [0.25, -0.15, -0.1],
            id="forward, one and the rest",
        ),
        # tokens 0 and 1 divided by their sums: student (5/8, 3/8), teacher (1/2, 1/2). Slope in the logits s (log s/t - KL), and
        # token 2 has none
        pytest.param(
            {"likeliest": 2, "tail": "renormalise"},
            5 / 8 * math.log(5 / 4) + 3 / 8 * math.log(3 / 4),
            [5 / 8 * 3 / 8 * math.log(5 / 3), -5 / 8 * 3 / 8 * math.log(5 / 3), 0],
            id="reverse, two among themselves",
        ),
        # the same two, as they are: 1/2 ln 2 + 3/10 ln 6/5, whose slopes are s_v (log s_v/t_v + 1) less s_v times their sum
        pytest.param(
            {"likeliest": 2, "tail": "drop"}, 0.5 * LN2 + 0.3 * math.log(1.2), None, id="reverse, two as they are"
        ),
    ],
)
def test_numbers_by_hand(config: dict[str, Any], loss: float, slopes: list[float] | None) -> None:
    value, own, _ = compared("student_topk_gkd", S, T, **config)
    assert value == pytest.approx(loss)
    if slopes is not None:
        assert own == pytest.approx(slopes)


def test_its_metrics_are_both_sides_probabilities_of_the_students_tokens() -> None:
    metrics = compared("student_topk_gkd", S, T, likeliest=2)[2]
    assert metrics["likeliest_mass"] == pytest.approx(0.8)
    assert metrics["teacher_likeliest_mass"] == pytest.approx(0.5)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_over_the_whole_vocabulary_it_is_full_gkd(beta: float) -> None:
    value, slopes, _ = compared("student_topk_gkd", S, T, beta=beta, tail="renormalise", temperature=2.0)
    other, others, _ = compared("full_gkd", S, T, beta=beta, temperature=2.0)
    assert value == pytest.approx(other)
    assert slopes == pytest.approx(others)


def test_a_token_that_the_student_rules_out_may_be_among_them() -> None:
    value, slopes, _ = compared("student_topk_gkd", [*S, 0.0], [*T, 0.0])
    assert value == pytest.approx(compared("student_topk_gkd", S, T)[0])
    assert torch.tensor(slopes).isfinite().all()


def test_where_the_teacher_looks_elsewhere_nothing_is_learned_from_it_without_a_tail() -> None:
    loss = get_loss("student_topk_gkd", likeliest=1, tail="renormalise")
    logits = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
    value, _ = loss.on_logits(
        logits, torch.zeros(1, dtype=torch.int64), mask=torch.ones(1), teacher_logits=torch.tensor([[-3.0, 4.0, 0.0]])
    )
    value.backward()
    assert float(value.detach()) == 0
    assert not logits.grad.any()
