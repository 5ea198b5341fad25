"""Regularizers over embeddings, in numbers to be redone on paper."""

from __future__ import annotations

from typing import Any

import pytest

from lossbook import get_loss
from lossbook.datums.errors import LossConfigError, ShapeError

from ..cases import assert_rows_equal, evaluated
from .test_in_batch import texts

#: Queries at a right angle, documents at cosine 0.6; then queries at a right angle, documents in line.
OPEN = [[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.6, 0.8]]
CLOSED = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [3.0, 0.0]]


@pytest.mark.parametrize(
    ("settings", "rows", "value"),
    [
        pytest.param({}, OPEN, 0.36 / 2, id="0.6 squared for the documents; the second moment 0.36 is below 1/2"),
        pytest.param({"aggregation": "sum"}, OPEN, 0.36, id="added up"),
        pytest.param({}, CLOSED, (1 + 1 - 0.5) / 2, id="in line: 1, and 1 - 1/2"),
        pytest.param({"mean_weight": 0.0}, CLOSED, 0.5 / 2, id="the second moment alone"),
        pytest.param({"second_moment_weight": 0.0, "mean_weight": 3.0}, CLOSED, 3 / 2, id="the mean alone"),
        pytest.param({"second_moment_weight": 4.0}, CLOSED, (1 + 2) / 2, id="a heavier second moment"),
        pytest.param({}, [[1.0, 0.0], [1.0, 0.0]], 0, id="one text a block: nothing to compare"),
    ],
)
def test_texts_of_a_block_are_spread(settings: dict[str, Any], rows: list[list[float]], value: float) -> None:
    assert evaluated(get_loss("gor", **settings), texts(len(rows)), rows)[0] == pytest.approx(value, abs=1e-12)


def test_cosines_have_slope_two_of_the_mean() -> None:
    # d (0.6²) / 2 blocks = 0.6 d cos; at (2, 0) the cosine's slope is (0, 0.8 / 2), at (0.6, 0.8) it is (0.64, -0.48).
    _, gradients, metrics = evaluated(get_loss("gor"), texts(4), OPEN)
    assert_rows_equal(gradients, [[0, 0], [0, 0], [0, 0.6 * 0.4], [0.6 * 0.64, -0.6 * 0.48]], 1e-12)
    assert metrics == pytest.approx({"mean_similarity": 0.3, "second_moment": 0.18})


def test_hard_negatives_are_a_block_of_their_own() -> None:
    rows = [*OPEN, [1.0, 0.0], [-1.0, 0.0]]
    value, _, metrics = evaluated(get_loss("gor", num_hard_negatives=1), texts(6), rows)
    assert value == pytest.approx((0.36 + 1 + 0.5) / 3)
    assert metrics["mean_similarity"] == pytest.approx((0.6 - 1) / 3)


SPARSE = [[1.0, 0.0, 2.0], [3.0, 0.0, 0.0], [0.0, -3.0, 1.0], [0.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        # Means of absolute values: queries (2, 0, 1), documents (0, 2, 1).
        ({}, 5 + 5),
        ({"query_weight": 0.0}, 5),
        ({"query_weight": 2.0, "document_weight": 0.0}, 10),
        ({"least_active": 1}, 0.25 + 1 + 5),  # the second query has one coordinate other than 0: (0.5, 0, 1) is left
        ({"least_active": 2}, 0),
    ],
)
def test_coordinates_cost_the_square_of_their_mean(settings: dict[str, Any], value: float) -> None:
    loss_value, _, metrics = evaluated(get_loss("flops", **settings), texts(4), SPARSE)
    assert loss_value == pytest.approx(value)
    assert metrics == {"query_active": 1.5, "document_active": 2.0}


def test_the_slope_of_a_coordinate_is_its_mean_with_its_sign() -> None:
    # d a² = 2 a sign(x) / 2 texts: a sign(x). A coordinate that is 0 has none.
    _, gradients, _ = evaluated(get_loss("flops"), texts(4), SPARSE)
    assert_rows_equal(gradients, [[2, 0, 1], [2, 0, 0], [0, -2, 1], [0, 2, 1]], 1e-12)


def test_negatives_are_documents() -> None:
    value, _, _ = evaluated(get_loss("flops", num_hard_negatives=1), texts(3), [[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    assert value == 1 + 9


@pytest.mark.parametrize(
    ("name", "off"),
    [
        ("gor", {"mean_weight": 0.0, "second_moment_weight": 0.0}),
        ("flops", {"query_weight": 0.0, "document_weight": 0.0}),
    ],
)
def test_without_weights_nothing_is_left(name: str, off: dict[str, float]) -> None:
    with pytest.raises(LossConfigError, match=f"{name}: with both weights 0 nothing is left"):
        get_loss(name, **off)
    with pytest.raises(ShapeError, match=f"{name} takes B queries, then B positives"):
        get_loss(name).check(texts(3))


def test_no_texts_are_no_loss() -> None:
    for name in ("gor", "flops"):
        total, _ = get_loss(name).terms([], {"embeddings": []})
        assert float(total) == 0, name
