"""Losses over labelled pairs, and over the order of pairs, in numbers to be redone on paper."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lossbook import Datum, ModelInput, get_loss
from lossbook.datums.errors import MissingInput, ShapeError

from ..cases import assert_rows_equal, evaluated

RIGHT_ANGLE = [[1.0, 0.0], [0.0, 1.0]]
SAME = [[1.0, 0.0], [2.0, 0.0]]


def pairs(*labels: float) -> list[Datum]:
    return [Datum(ModelInput.from_ints([1, 2]), {"label": label}) for label in labels for _ in range(2)]


@pytest.mark.parametrize(
    ("label", "settings", "rows", "value", "gradients"),
    [
        pytest.param(1, {}, RIGHT_ANGLE, 0.5, [[0, -1], [-1, 0]], id="alike but at distance 1: pulled together"),
        pytest.param(0, {}, RIGHT_ANGLE, 0, [[0, 0], [0, 0]], id="unlike and beyond the margin of a half: left alone"),
        pytest.param(0, {"margin": 1.0}, RIGHT_ANGLE, 0, [[0, 0], [0, 0]], id="unlike, at the margin: left alone"),
        pytest.param(
            0, {"margin": 1.5}, RIGHT_ANGLE, 0.125, [[0, 0.5], [0.5, 0]], id="unlike, half short of it: pushed"
        ),
        pytest.param(0.5, {"margin": 1.5}, RIGHT_ANGLE, 0.3125, [[0, -0.25], [-0.25, 0]], id="half alike: both terms"),
        pytest.param(
            1, {"distance": "euclidean"}, [[3.0, 0.0], [0.0, 4.0]], 12.5, [[3, -4], [-3, 4]], id="at distance 5, alike"
        ),
        pytest.param(
            0,
            {"distance": "euclidean", "margin": 7.0},
            [[3.0, 0.0], [0.0, 4.0]],
            2.0,
            [[-1.2, 1.6], [1.2, -1.6]],
            id="at distance 5, unlike, 2 short of the margin",
        ),
        pytest.param(
            0,
            {"distance": "euclidean", "margin": 1.0},
            [[3.0, 4.0]] * 2,
            0.5,
            [[0, 0], [0, 0]],
            id="unlike but in one place: no direction to push in",
        ),
    ],
)
def test_a_labelled_pair(
    label: float, settings: dict[str, Any], rows: list[list[float]], value: float, gradients: list[list[float]]
) -> None:
    loss_value, slopes, _ = evaluated(get_loss("contrastive_pairs", **settings), pairs(label), rows)
    assert loss_value == pytest.approx(value)
    assert_rows_equal(slopes, gradients, 1e-12)


def test_distances_are_reported_by_label() -> None:
    loss = get_loss("contrastive_pairs")
    value, _, metrics = evaluated(loss, pairs(1, 0, 0), [*RIGHT_ANGLE, *SAME, *RIGHT_ANGLE])
    assert value == pytest.approx((0.5 + 0.125 + 0) / 3)
    assert metrics == {"positive_distance": 1, "negative_distance": 0.5, "labels_disagree": 0}


def test_a_label_of_one_half_counts_as_unlike_in_the_metrics() -> None:
    _, _, metrics = evaluated(get_loss("contrastive_pairs"), pairs(0.5), RIGHT_ANGLE)
    assert metrics["negative_distance"] == 1
    assert math.isnan(metrics["positive_distance"])


@pytest.mark.parametrize(
    ("label", "value", "gradients"),
    [
        pytest.param(1, 0.16, [[0, -0.64], [-0.512, 0.384]], id="to be alike: turned towards each other"),
        pytest.param(0.5, 0.01, [[0, 0.16], [0.128, -0.096]], id="a little too near: turned apart"),
        pytest.param(-1, 2.56, [[0, 2.56], [2.048, -1.536]], id="to be opposite: turned far apart"),
    ],
)
def test_a_cosine_of_six_tenths_is_drawn_to_its_label(label: float, value: float, gradients: list[list[float]]) -> None:
    loss = get_loss("cosine_similarity")
    loss_value, slopes, metrics = evaluated(loss, pairs(label), [[1.0, 0.0], [0.6, 0.8]])
    assert loss_value == pytest.approx(value)
    assert_rows_equal(slopes, gradients, 1e-12)
    assert metrics["similarity"] == pytest.approx(0.6)


@pytest.mark.parametrize("name", ["contrastive_pairs", "cosine_similarity", "cosent", "angle"])
def test_a_pairs_label_is_that_of_its_first_datum_and_a_metric_counts_where_the_second_says_otherwise(
    name: str,
) -> None:
    rows = [*RIGHT_ANGLE, *SAME, [1.0, 0.0], [0.6, 0.8]]
    data = pairs(1, 0, 1)
    odd = [*data[:3], *pairs(1)[:1], *data[4:]]
    value, _, metrics = evaluated(get_loss(name), odd, rows)
    assert value == evaluated(get_loss(name), data, rows)[0]
    assert metrics["labels_disagree"] == 1


@pytest.mark.parametrize("name", ["contrastive_pairs", "cosine_similarity"])
def test_an_odd_number_of_datums_is_refused(name: str) -> None:
    with pytest.raises(ShapeError, match=r"^pairs are datums 2i and 2i\+1, but there are 3 datums$"):
        get_loss(name).check(pairs(1, 0)[:3])


@pytest.mark.parametrize("name", ["cosent", "angle"])
def test_an_odd_number_of_datums_is_refused_by_losses_over_the_order_of_pairs(name: str) -> None:
    with pytest.raises(ShapeError, match=rf"^{name} takes pairs, datums 2i and 2i\+1, but there are 3 datums$"):
        get_loss(name).check(pairs(1, 0)[:3])


def test_a_datum_without_label_is_named() -> None:
    with pytest.raises(MissingInput, match=r"^cosent reads 'label', which datum 1 of 2 does not carry"):
        get_loss("cosent").check([*pairs(1)[:1], Datum(ModelInput.from_ints([1, 2]))])


@pytest.mark.parametrize(
    ("labels", "value", "slope", "accuracy"),
    [
        pytest.param((1, 0), math.log1p(math.e), 1 / (1 + math.exp(-1)), 0, id="the wrong way round"),
        pytest.param((0, 1), math.log1p(1 / math.e), -1 / (1 + math.e), 1, id="in order: pushed further"),
        pytest.param((1, 1), 0, 0, math.nan, id="equal labels are not compared"),
    ],
)
def test_two_pairs_in_and_out_of_order(
    labels: tuple[float, float], value: float, slope: float, accuracy: float
) -> None:
    # Cosines 0 and 1. The pair at cosine 1 has no direction in which its cosine changes.
    loss = get_loss("cosent", scale=1.0)
    loss_value, gradients, metrics = evaluated(loss, pairs(*labels), [*RIGHT_ANGLE, *SAME])
    assert loss_value == pytest.approx(value)
    assert_rows_equal(gradients, [[0, -slope], [-slope, 0], [0, 0], [0, 0]], 1e-12)
    assert metrics["order_accuracy"] == pytest.approx(accuracy, nan_ok=True)
    assert metrics["similarity"] == 0.5


@pytest.mark.parametrize(
    ("name", "rows", "excess"),
    [
        ("cosent", [*RIGHT_ANGLE, *SAME], 1.0),
        ("angle", [[1.0, 0.0], [0.8, 0.6], [1.0, 0.0], [0.8, -0.6]], 1.2),
    ],
)
def test_the_scale_of_an_order_is_twenty_unless_given(name: str, rows: list[list[float]], excess: float) -> None:
    loss_value, _, _ = evaluated(get_loss(name), pairs(1, 0), rows)
    assert loss_value == pytest.approx(20 * excess + math.log1p(math.exp(-20 * excess)))


def test_three_pairs_that_cannot_be_told_apart_cost_the_logarithm_of_their_comparisons_and_one() -> None:
    loss_value, _, metrics = evaluated(get_loss("cosent"), pairs(0, 0.5, 1), RIGHT_ANGLE * 3)
    assert loss_value == pytest.approx(math.log(4))
    assert metrics["order_accuracy"] == 0, "a tie is not in order"


@pytest.mark.parametrize("name", ["cosent", "angle"])
def test_only_the_order_of_labels_counts(name: str) -> None:
    rows = [*RIGHT_ANGLE, *SAME, [1.0, 0.0], [0.6, 0.8]]
    loss_values = [evaluated(get_loss(name), pairs(*labels), rows)[0] for labels in ((0, 1, 2), (-5, 0.25, 100))]
    assert loss_values[0] == loss_values[1]


def test_the_angle_of_two_numbers_in_the_complex_plane() -> None:
    # 1 with .8 + .6i: |.8 - .6| = .2; 1 with .8 - .6i: |.8 + .6| = 1.4. They are the wrong way round by 1.2.
    rows = [[1.0, 0.0], [0.8, 0.6], [1.0, 0.0], [0.8, -0.6]]
    loss_value, gradients, metrics = evaluated(get_loss("angle", scale=1.0), pairs(1, 0), rows)
    assert loss_value == pytest.approx(math.log1p(math.exp(1.2)))
    assert metrics["similarity"] == pytest.approx(0.8)
    share = 1 / (1 + math.exp(-1.2))
    # d|s|/da is the part of b + ib across a: (1.4, .2) less 1.4 (1, 0); d|s|/db likewise of (1, -1) across b.
    assert_rows_equal(gradients[2:], [[0, 0.2 * share], [-0.12 * share, -0.16 * share]], 1e-12)


@pytest.mark.parametrize(
    ("row", "similarity"),
    [
        pytest.param([0.8, 0.6, 0.0], 0.8, id="a second real part"),
        pytest.param([0.8, 0.0, 0.6], 0.2, id="the first one's imaginary part"),
    ],
)
def test_of_an_odd_width_the_last_real_part_has_no_imaginary_part(row: list[float], similarity: float) -> None:
    _, _, metrics = evaluated(get_loss("angle"), pairs(1), [[1.0, 0.0, 0.0], row])
    assert metrics["similarity"] == pytest.approx(similarity)


@pytest.mark.parametrize("name", ["contrastive_pairs", "cosine_similarity", "cosent", "angle"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_zero_vector_is_finite_in_value_and_gradient(name: str, dtype: torch.dtype) -> None:
    rows = torch.tensor([[0.0, 0.0], [0.6, 0.8], [0.0, 0.0], [0.0, 0.0]], dtype=dtype, requires_grad=True)
    value, _ = get_loss(name)(pairs(1, 0), list(rows))
    value.backward()
    assert torch.isfinite(value)
    assert rows.grad is not None
    assert torch.isfinite(rows.grad).all()
