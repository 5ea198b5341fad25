"""Distillation of embeddings and of similarities, in numbers to be redone on paper."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lossbook import Datum, ModelInput, get_loss
from lossbook.datums.errors import LossConfigError, ShapeError

from ..cases import assert_rows_equal, evaluated
from .test_in_batch import ACROSS


def taught(key: str, *values: Any) -> list[Datum]:
    return [Datum(ModelInput.from_ints([1, 2]), {key: value}) for value in values]


@pytest.mark.parametrize(
    ("settings", "value", "gradient"),
    [
        # cos = 24 / 25; its slope at (3, 4) is ((4, 3) / 5 - 24 / 25 (3, 4) / 5) / 5
        ({}, 0.04, [-(20 - 14.4) / 125, -(15 - 19.2) / 125]),
        ({"distance": "l2"}, math.sqrt(2), [-1 / math.sqrt(2), 1 / math.sqrt(2)]),
        ({"distance": "mse"}, 1.0, [-1.0, 1.0]),
    ],
)
def test_a_vector_is_drawn_to_the_teachers(settings: dict[str, Any], value: float, gradient: list[float]) -> None:
    loss = get_loss("embedding_distill", **settings)
    loss_value, gradients, metrics = evaluated(loss, taught("teacher_embedding", [4.0, 3.0]), [[3.0, 4.0]])
    assert loss_value == pytest.approx(value)
    assert_rows_equal(gradients, [gradient], 1e-12)
    assert metrics["teacher_similarity"] == pytest.approx(0.96)


def test_texts_are_averaged() -> None:
    data = taught("teacher_embedding", [1.0, 0.0], [0.0, 1.0])
    value, _, _ = evaluated(get_loss("embedding_distill"), data, [[2.0, 0.0], [5.0, 0.0]])
    assert value == pytest.approx(0.5)


def test_a_teacher_of_another_width_is_refused() -> None:
    with pytest.raises(
        ShapeError, match=r"embeddings have 2 coordinates, but teacher_embedding has 3\. Take a teacher"
    ):
        evaluated(get_loss("embedding_distill"), taught("teacher_embedding", [1.0, 0.0, 0.0]), [[1.0, 0.0]])


ROOT = math.sqrt(3)


@pytest.mark.parametrize(
    ("settings", "scores", "value", "agreement"),
    [
        # The student's scores ln 3 and 0 are probabilities 3/4 and 1/4.
        pytest.param({}, (9, 0, 0), 0.5 * math.log(4 / 3), 1, id="against 1/2 and 1/2"),
        pytest.param({}, (9, math.log(3), 0), 0, 1, id="against the same"),
        pytest.param({"teacher_temperature": 2.0}, (0, 0, math.log(9)), 0.5 * math.log(3), 0, id="against 1/4 and 3/4"),
        pytest.param(
            {"temperature": 2.0},
            (0, 0, 0),
            4 * (0.5 * math.log((ROOT + 1) / (2 * ROOT)) + 0.5 * math.log((ROOT + 1) / 2)),
            1,
            id="at temperature 2 the student has root 3 to 1, and the loss is four times the divergence",
        ),
    ],
)
def test_scores_are_drawn_to_the_teachers(
    settings: dict[str, Any], scores: tuple[float, ...], value: float, agreement: float
) -> None:
    rows = [[1.0, 0.0], [math.log(3), 5.0], [0.0, 7.0]]
    loss_value, _, metrics = evaluated(get_loss("score_kl", **settings), taught("teacher_score", *scores), rows)
    assert loss_value == pytest.approx(value, rel=1e-6, abs=1e-9)
    assert metrics["order_agreement"] == agreement


def test_the_slope_of_a_score_is_the_difference_of_probabilities() -> None:
    # d KL / d score = student's probability - teacher's: 3/4 - 1/2 for the document, and the reverse for the negative.
    data = taught("teacher_score", 0.0, 0.0, 0.0)
    _, gradients, _ = evaluated(get_loss("score_kl"), data, [[1.0, 0.0], [math.log(3), 5.0], [0.0, 7.0]])
    assert_rows_equal(gradients[1:], [[0.25, 0], [-0.25, 0]], 1e-12)


def test_scores_by_cosine_and_blocks_of_negatives() -> None:
    # Two rows, three documents each: cosines 1, 0, 0 and 0, 1, 0 against even teachers.
    rows = [[2.0, 0.0], [0.0, 3.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 4.0], [0.0, 1.0], [1.0, 0.0]]
    loss = get_loss("score_kl", similarity="cosine", num_hard_negatives=2)
    value, _, _ = evaluated(loss, taught("teacher_score", *[0.0] * 8), rows)
    assert value == pytest.approx(math.log(math.e + 2) - 1 / 3 - math.log(3))


def test_a_single_candidate_says_nothing() -> None:
    with pytest.raises(LossConfigError, match="there must be two: num_hard_negatives is at least 1"):
        get_loss("score_kl", num_hard_negatives=0).check(taught("teacher_score", 0.0, 0.0))


@pytest.mark.parametrize(
    ("settings", "teacher", "value"),
    [
        pytest.param(
            {"temperature": 1.0},
            [[1.0, 0.0, 0.0]] * 4,
            math.log(math.e + 1) - 0.5 - math.log(2),
            id="e to 1 against a teacher that sees no difference",
        ),
        pytest.param({}, [[3.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 2.0]], 0, id="the teacher's lengths do not matter"),
        pytest.param(
            {"temperature": 1.0, "teacher_temperature": 0.5},
            ACROSS,
            # softmax (2, 0) against softmax (1, 0): p (2 - 1) - log-partitions
            math.exp(2) / (math.exp(2) + 1) - math.log(math.exp(2) + 1) + math.log(math.e + 1),
            id="a teacher twice as sharp",
        ),
    ],
)
def test_similarities_of_a_batch_are_drawn_to_the_teachers(
    settings: dict[str, Any], teacher: list[list[float]], value: float
) -> None:
    loss = get_loss("in_batch_kl", **settings)
    assert evaluated(loss, taught("teacher_embedding", *teacher), ACROSS)[0] == pytest.approx(value, abs=1e-12)


def test_the_temperature_in_a_batch_is_a_twentieth_unless_given() -> None:
    value, _, metrics = evaluated(get_loss("in_batch_kl"), taught("teacher_embedding", *[[1.0, 0.0]] * 4), ACROSS)
    assert value == pytest.approx(math.log(math.exp(20) + 1) - 10 - math.log(2))
    assert metrics["order_agreement"] == 0.5, "the teacher's first of equals is the first"
    assert get_loss("in_batch_kl").pack(taught("teacher_embedding", *[[1.0]] * 4)).value_count == 2


def test_hard_negatives_are_in_the_teachers_view_too() -> None:
    rows = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    loss = get_loss("in_batch_kl", num_hard_negatives=1, temperature=1.0)
    value, _, _ = evaluated(loss, taught("teacher_embedding", *[[1.0]] * 3), rows)
    assert value == pytest.approx(math.log(math.e + 1) - 0.5 - math.log(2))
    with pytest.raises(ShapeError, match="in_batch_kl takes B queries, then B positives, so"):
        get_loss("in_batch_kl").check(taught("teacher_embedding", *[[1.0]] * 3))


def test_agreement_is_the_share_of_queries_whose_first_document_is_the_teachers() -> None:
    # queries along x, y and x; the student's documents lie along x, y and -x, the teacher's along x, x and y
    student = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]
    teacher = [*student[:3], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]]
    _, _, metrics = evaluated(get_loss("in_batch_kl"), taught("teacher_embedding", *teacher), student)
    assert metrics["order_agreement"] == pytest.approx(2 / 3), "the second query's nearest is another"


def test_a_part_without_rows_says_nothing_of_agreement() -> None:
    loss = get_loss("in_batch_kl")
    full = {"embeddings": torch.eye(2), "teacher_embedding": torch.eye(2)}
    _, metrics = loss.on_tensors(**full)
    value, none = loss.on_tensors(**{name: rows[:0] for name, rows in full.items()}, denominator=1.0)
    assert value.item() == 0
    assert (metrics + none)["order_agreement"] == metrics["order_agreement"] == 1
