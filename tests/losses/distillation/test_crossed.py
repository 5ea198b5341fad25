"""Losses of a teacher with another vocabulary: what is shared and what is sorted, in numbers to be redone on paper."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossbook.datums.errors import ShapeError
from lossbook.losses import stats
from lossbook.losses.distillation import gold, uld
from lossbook.losses.distillation.crossed import sorted_distance
from lossbook.losses.math.divergences import forward_kl, jsd, reverse_kl


def logs(*probabilities: float) -> Tensor:
    """[1, V] logarithms, -inf of 0."""
    return torch.tensor([probabilities], dtype=torch.float64).log()


def called(loss: Any, student: Tensor, teacher: Tensor, **given: Any) -> tuple[float, list[float], dict[str, float]]:
    """Value, gradient and metrics at one position."""
    leaf = student.clone().requires_grad_()
    values, metrics = loss(leaf, teacher, **given)
    (slope,) = torch.autograd.grad(values.sum(), leaf)
    return float(values.detach()), slope[0].tolist(), stats.values(metrics)


def test_uld_compares_sorted_probabilities_whatever_their_tokens() -> None:
    # Sorted (0.5, 0.3, 0.2) and (0.625, 0.375, 0): 0.125 + 0.075 + 0.2. The slope of p in log p is p.
    value, slopes, metrics = called(uld, logs(0.3, 0.5, 0.2), logs(0.375, 0.625))
    assert value == pytest.approx(0.4)
    assert slopes == pytest.approx([-0.3, -0.5, 0.2])
    assert metrics == pytest.approx({"student_top": 0.5, "teacher_top": 0.625})


def test_equal_probabilities_share_their_gradient() -> None:
    # Sorted (0.4, 0.3, 0.3) against (0.4, 0.35, 0.25): one 0.3 is below its partner and one above, so neither moves.
    value, slopes, _ = called(uld, logs(0.3, 0.4, 0.3), logs(0.4, 0.35, 0.25))
    assert value == pytest.approx(0.1)
    assert slopes == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)


def test_uld_has_a_temperature_for_both() -> None:
    # At temperature 1/2 probabilities are squared: (1, 9) / 10 and (1, 1) / 2.
    assert called(uld, logs(0.25, 0.75), logs(0.5, 0.5), temperature=0.5)[0] == pytest.approx(0.8)


def test_a_span_of_several_tokens_is_as_likely_as_all_of_them() -> None:
    # (0.5, 0.5) times a half, and (1, 0) times a quarter: 0 + 0.25.
    rest = {"span_logprobs": logs(0.5)[0], "teacher_span_logprobs": logs(0.25)[0]}
    assert called(uld, logs(0.5, 0.5), logs(1.0, 0.0), **rest)[0] == pytest.approx(0.25)
    assert called(uld, logs(0.5, 0.5), logs(1.0, 0.0), teacher_span_logprobs=logs(0.5)[0])[0] == pytest.approx(0.5)


#: The student's three tokens; of the teacher's three it shares the first and the last, and the third is its own.
STUDENT, TEACHER = (0.5, 0.25, 0.25), (0.25, 0.0, 0.25, 0.5)
#: (0.5, 0.25) against (0.25, 0.25); the mixture at beta 1/2 is (0.375, 0.25).
MATCHED = 0.5 * (0.25 * math.log(2 / 3) + 0.5 * math.log(4 / 3))


@pytest.mark.parametrize(
    ("settings", "matched", "weight"),
    [
        pytest.param({}, MATCHED, 2 / 3, id="2 of the teacher's 3 tokens are shared"),
        pytest.param({"matched_weight": 0.25}, MATCHED, 0.25, id="a weight of one's own"),
        pytest.param({"matched_weight": 1.0}, MATCHED, 1.0, id="the shared alone"),
        pytest.param({"matched_weight": 0.0}, MATCHED, 0.0, id="the others alone"),
        pytest.param({"beta": 0.0}, 0.25 * math.log(0.5), 2 / 3, id="forward KL"),
        pytest.param({"beta": 1.0}, 0.5 * math.log(2), 2 / 3, id="reverse KL"),
    ],
)
def test_gold_compares_shared_tokens_as_they_are_and_sorts_the_others(
    settings: dict[str, float], matched: float, weight: float
) -> None:
    value, _, metrics = called(gold, logs(*STUDENT), logs(*TEACHER), **settings)
    assert value == pytest.approx(weight * matched + (1 - weight) * 0.25)  # 0.25 and 0.5 are left over
    expected = {"divergence": matched, "distance": 0.25, "student_matched": 0.75, "teacher_matched": 0.5}
    assert metrics == pytest.approx(expected)


def test_golds_gradient_is_that_of_each_token_in_its_term() -> None:
    _, slopes, _ = called(gold, logs(*STUDENT), logs(*TEACHER))
    # d JSD / d log s = s/2 log(s/m) for beta 1/2; the unmatched 0.25 is below the teacher's 0.5.
    assert slopes == pytest.approx([2 / 3 * 0.25 * math.log(4 / 3), -1 / 3 * 0.25, 0.0])


def test_gold_multiplies_the_probabilities_of_a_span() -> None:
    whole = called(gold, logs(*STUDENT), logs(*TEACHER))[0]
    half = {"span_logprobs": logs(0.5)[0], "teacher_span_logprobs": logs(0.5)[0]}
    assert called(gold, logs(*STUDENT), logs(*TEACHER), **half)[0] == pytest.approx(whole / 2)


def test_gold_has_a_temperature_for_both() -> None:
    # At temperature 1/2: (1, 9) / 10 against (1, 1) / 2, all shared.
    own, other = logs(0.1, 0.9), logs(0.5, 0.5)
    expected = float(jsd(own, other, 0.5))
    assert called(gold, logs(0.25, 0.75), logs(0.5, 0.5), temperature=0.5)[0] == pytest.approx(expected)


@pytest.mark.parametrize("loss", [gold, uld], ids=["gold", "uld"])
def test_a_position_may_stand_alone(loss: Any) -> None:
    table: list[Tensor] = []
    metrics, of_one = {}, {}
    for student, teacher in ((logs(*STUDENT), logs(*TEACHER)), (logs(*STUDENT)[0], logs(*TEACHER)[0])):
        values, metrics = loss(student, teacher)
        table.append(values.reshape(()))
        of_one = of_one or stats.values(metrics)
    assert float(table[0]) == float(table[1])
    assert stats.values(metrics) == of_one
    with pytest.raises(ShapeError, match="of at least 3 tokens, but it has 2"):
        gold(logs(*STUDENT)[0], logs(0.5, 0.5)[0])


def test_gold_refuses_a_teacher_that_is_not_in_the_students_numbers() -> None:
    with pytest.raises(ShapeError, match="of at least 3 tokens, but it has 2: see"):
        gold(logs(*STUDENT), logs(0.5, 0.5))


PROBABILITIES = st.lists(st.integers(1, 50), min_size=1, max_size=6).map(
    lambda drawn: torch.tensor([drawn], dtype=torch.float64) / sum(drawn)
)


@given(first=PROBABILITIES, second=PROBABILITIES)
def test_the_sorted_distance_is_one_of_distributions_of_probabilities(first: Tensor, second: Tensor) -> None:
    distance = float(sorted_distance(first, second))
    assert distance == pytest.approx(float(sorted_distance(second, first)))
    assert 0 <= distance <= 2
    longest = max(first.shape[1], second.shape[1])
    lists = [sorted([*one[0].tolist(), *[0.0] * (longest - one.shape[1])]) for one in (first, second)]
    assert distance == pytest.approx(sum(abs(a - b) for a, b in zip(*lists, strict=True)))
    assert float(sorted_distance(first, first.flip(-1))) == 0


@given(student=PROBABILITIES, teacher=PROBABILITIES)
def test_with_one_vocabulary_gold_is_the_divergence_of_whole_distributions(student: Tensor, teacher: Tensor) -> None:
    width = min(student.shape[1], teacher.shape[1])
    own, other = (one[:, :width].log().log_softmax(-1) for one in (student, teacher))
    for beta, divergence in ((0.0, forward_kl), (1.0, reverse_kl), (0.3, lambda s, t: jsd(s, t, 0.3))):
        assert float(gold(own, other, beta=beta)[0]) == pytest.approx(float(divergence(own, other)), abs=1e-12)
