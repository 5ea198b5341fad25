"""Losses over triplets, in numbers to be redone on paper."""

from __future__ import annotations

from typing import Any

import pytest

from lossbook import Datum, ModelInput, get_loss
from lossbook.datums.errors import ShapeError

from ..cases import assert_rows_equal, evaluated


def texts(*scores: float) -> list[Datum]:
    return [Datum(ModelInput.from_ints([1, 2]), {"teacher_score": score}) for score in scores]


NOTHING = [[0.0, 0.0]] * 3


@pytest.mark.parametrize(
    ("settings", "rows", "value", "gradients"),
    [
        pytest.param(
            {},
            [[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]],
            5.0,
            [[-0.6, 0.2], [0.6, 0.8], [0, -1]],
            id="positive at 5, negative at 1, margin 1: the one is pulled, the other pushed",
        ),
        pytest.param({}, [[0.0, 0.0], [0.0, 1.0], [3.0, 4.0]], 0, NOTHING, id="the other way round: left alone"),
        pytest.param({}, [[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]], 0, NOTHING, id="farther by just the margin: left alone"),
        pytest.param(
            {"margin": 1.5},
            [[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]],
            0.5,
            [[0, 0], [0, 1], [0, -1]],
            id="farther, half short of the margin",
        ),
        pytest.param({}, [[0.6, 0.8]] * 3, 1.0, NOTHING, id="collapsed: the margin, and no way out"),
        pytest.param(
            {"distance": "cosine", "margin": 0.5},
            [[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]],
            1.5,
            [[0, -1], [-1, 0], [0, 0]],
            id="by cosine: positive at a right angle, negative in line",
        ),
    ],
)
def test_a_triplet(
    settings: dict[str, Any], rows: list[list[float]], value: float, gradients: list[list[float]]
) -> None:
    loss_value, slopes, metrics = evaluated(get_loss("triplet", **settings), texts(0, 0, 0), rows)
    assert loss_value == pytest.approx(value)
    assert_rows_equal(slopes, gradients, 1e-12)
    assert metrics["active"] == float(value > 0)


def test_triplets_stand_in_blocks_of_anchors_positives_and_negatives() -> None:
    rows = [[0.0, 0.0], [1.0, 1.0], [3.0, 4.0], [1.0, 2.0], [0.0, 1.0], [4.0, 5.0]]
    loss_value, _, metrics = evaluated(get_loss("triplet"), texts(*[0] * 6), rows)
    assert loss_value == pytest.approx(((5 - 1 + 1) + 0) / 2)
    assert metrics == pytest.approx({"active": 0.5, "positive_distance": 3, "negative_distance": 3})


@pytest.mark.parametrize(
    ("settings", "rows", "teacher", "value", "gradients", "agreement"),
    [
        pytest.param(
            {},
            [[1.0, 0.0], [2.0, 0.0], [1.0, 0.0]],
            (99, 3, 0),
            4.0,
            [[-4, 0], [-4, 0], [4, 0]],
            1,
            id="dot products 2 and 1 where the teacher is 3 apart: 2 short",
        ),
        pytest.param(
            {},
            [[1.0, 0.0], [2.0, 0.0], [1.0, 0.0]],
            (0, 1, 2),
            4.0,
            [[4, 0], [4, 0], [-4, 0]],
            0,
            id="the teacher prefers the other one",
        ),
        pytest.param(
            {"similarity": "cosine"},
            [[1.0, 0.0], [5.0, 0.0], [0.0, 1.0]],
            (0, 0.75, 0.25),
            0.25,
            [[0, -1], [0, 0], [-1, 0]],
            1,
            id="cosines 1 and 0 where the teacher is a half apart",
        ),
    ],
)
def test_a_margin_is_drawn_to_the_teachers(
    settings: dict[str, Any],
    rows: list[list[float]],
    teacher: tuple[float, ...],
    value: float,
    gradients: list[list[float]],
    agreement: float,
) -> None:
    loss_value, slopes, metrics = evaluated(get_loss("margin_mse", **settings), texts(*teacher), rows)
    assert loss_value == pytest.approx(value)
    assert_rows_equal(slopes, gradients, 1e-12)
    assert metrics == {"order_agreement": agreement, "margin": 1.0, "teacher_margin": teacher[1] - teacher[2]}


def test_a_teacher_without_preference_agrees_with_nobody() -> None:
    _, _, metrics = evaluated(get_loss("margin_mse"), texts(0, 1, 1), [[1.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    assert metrics["order_agreement"] == 0


def test_a_count_that_cannot_be_triplets_is_refused_before_any_forward() -> None:
    with pytest.raises(ShapeError) as caught:
        get_loss("margin_mse").check(texts(0, 0))
    assert str(caught.value) == (
        "margin_mse takes B queries, then B positives, then B negatives, so the number of datums must be a multiple "
        "of 3; got 2 datums"
    )
