"""What is particular to the other in-batch losses, in numbers to be redone on paper."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lossbook import Datum, ModelInput, get_loss
from lossbook.datums.errors import ShapeError

from ..cases import assert_rows_equal, evaluated

ACROSS = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
#: Two queries and their documents, the second query nearer to the first document.
PLANE = [[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, 1.0]]


def texts(count: int) -> list[Datum]:
    return [Datum(ModelInput.from_ints([1, 2]))] * count


def documents(*ids: int) -> list[Datum]:
    return [Datum(ModelInput.from_ints([1, 2]), {"document_id": i}) for i in ids]


def test_a_hard_negative_across_the_query_is_pushed_away_by_its_share() -> None:
    # Query and document agree, the negative is at a right angle: the softmax gives it 1 / (1 + e).
    loss = get_loss("multiple_negatives_ranking", scale=1.0, num_hard_negatives=1)
    value, gradients, metrics = evaluated(loss, texts(3), [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert value == pytest.approx(math.log(1 + math.exp(-1)))
    share = 1 / (1 + math.e)
    assert_rows_equal(gradients, [[0, share], [0, 0], [share, 0]], 1e-12)
    assert metrics["in_batch_recall_at_1"] == 1
    assert (metrics["positive_similarity"], metrics["negative_similarity"]) == (1, 0)


def test_ranking_is_the_queries_half_of_info_nce_at_temperature_one_over_scale() -> None:
    value, _, _ = evaluated(get_loss("multiple_negatives_ranking", scale=4.0), texts(4), PLANE)
    _, _, both = evaluated(get_loss("info_nce", temperature=0.25), texts(4), PLANE)
    assert value == pytest.approx(both["query_to_document"], abs=1e-12)


def test_the_scale_is_twenty_unless_given() -> None:
    value, _, _ = evaluated(get_loss("mnrl"), texts(4), PLANE)
    first, second = math.log(math.exp(16) + 1) - 16, math.log(math.exp(19.2) + math.exp(16)) - 16
    assert value == pytest.approx((first + second) / 2)


def test_hard_negatives_are_negatives_of_every_query() -> None:
    loss = get_loss("multiple_negatives_ranking", num_hard_negatives=2)
    value, _, metrics = evaluated(loss, texts(8), [[0.6, 0.8]] * 8)
    assert value == pytest.approx(math.log(6)), "2 documents and 4 hard negatives"
    assert metrics["in_batch_recall_at_1"] == 0


def test_a_hard_negative_that_is_the_document_itself_is_left_out() -> None:
    loss = get_loss("multiple_negatives_ranking", scale=1.0, num_hard_negatives=1)
    value, _, metrics = evaluated(loss, documents(5, 5, 5), [[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    assert value == 0
    assert metrics["masked_duplicates"] == 1
    assert math.isnan(metrics["negative_similarity"]), "no negative is left"


def test_recall_counts_queries_that_find_their_document() -> None:
    # Queries at 0, 20 and -20 degrees, their documents at 0, 53 and -53: all of them are nearest to the first.
    side = math.cos(math.radians(20)), math.sin(math.radians(20))
    rows = [[1.0, 0.0], [side[0], side[1]], [side[0], -side[1]], [1.0, 0.0], [0.6, 0.8], [0.6, -0.8]]
    for name in ("info_nce", "mnrl", "siglip"):
        assert evaluated(get_loss(name), texts(6), rows)[2]["in_batch_recall_at_1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(("count", "extra"), [(1, 3), (2, 4), (1, 0), (4, 1)])
def test_extra_negatives_leave_pairs(count: int, extra: int) -> None:
    with pytest.raises(ShapeError, match=f"and {extra} extra negatives, but there are {count} datums"):
        get_loss("info_nce", num_extra_negatives=extra).check(texts(count))


def test_two_views_alone_have_nothing_to_tell_apart() -> None:
    value, gradients, _ = evaluated(get_loss("ntxent"), texts(2), PLANE[:2])
    assert value == pytest.approx(0, abs=1e-12)
    assert_rows_equal(gradients, [[0, 0], [0, 0]], 1e-12)


def test_views_of_two_things_at_a_right_angle() -> None:
    # Each view: its partner at cosine 1, the two views of the other thing at 0, itself left out.
    value, gradients, metrics = evaluated(get_loss("ntxent", temperature=1.0), texts(4), ACROSS)
    assert value == pytest.approx(math.log(math.e + 2) - 1)
    share = 1 / (math.e + 2)  # pushed by both views of the other, and pushing them; over 4
    assert_rows_equal(gradients, [[0, share], [share, 0], [0, share], [share, 0]], 1e-12)
    assert metrics == pytest.approx(
        {"in_batch_recall_at_1": 1, "positive_similarity": 1, "negative_similarity": 0}, abs=1e-12
    )


def test_collapsed_views_cost_the_logarithm_of_the_number_of_others() -> None:
    value, _, metrics = evaluated(get_loss("ntxent"), texts(8), [[0.6, 0.8]] * 8)
    assert value == pytest.approx(math.log(7))
    assert metrics["in_batch_recall_at_1"] == 0


def test_the_temperature_of_views_is_seven_hundredths_unless_given() -> None:
    value, _, _ = evaluated(get_loss("ntxent"), texts(4), ACROSS)
    assert value == pytest.approx(math.log1p(2 * math.exp(-1 / 0.07)))


@pytest.mark.parametrize(
    ("settings", "value", "slope"),
    [
        pytest.param(
            {},
            math.log(2) + math.log1p(math.exp(-10)),
            10 / (1 + math.exp(10)) / 2,
            id="at its defaults: a perfect pair costs ln 2, a negative at a right angle next to nothing",
        ),
        pytest.param(
            {"scale": 1.0, "bias": 0.0},
            math.log1p(math.exp(-1)) + math.log(2),
            0.5 / 2,
            id="without bias a negative at a right angle costs ln 2 and is pushed by a half",
        ),
    ],
)
def test_siglip_judges_each_pair_alone(settings: dict[str, Any], value: float, slope: float) -> None:
    loss_value, gradients, _ = evaluated(get_loss("siglip", **settings), texts(4), ACROSS)
    assert loss_value == pytest.approx(value)
    assert_rows_equal(gradients, [[0, slope], [slope, 0], [0, slope], [slope, 0]], 1e-12)


def test_siglip_leaves_out_the_twin_of_a_document() -> None:
    value, _, metrics = evaluated(get_loss("siglip"), documents(1, 1, 1, 1), [[1.0, 0.0]] * 4)
    assert value == pytest.approx(math.log(2))
    assert metrics["masked_duplicates"] == 2
    assert math.isnan(metrics["negative_similarity"]), "no negative is left"


@pytest.mark.parametrize(
    ("length", "similarity"),
    [
        pytest.param(1e-11, 0.8, id="a short vector has a direction"),
        pytest.param(1e-13, 0.08, id="below 1e-12 it is no longer stretched to length 1"),
        pytest.param(0.0, 0.0, id="a zero vector is similar to nothing"),
    ],
)
def test_the_shortest_vectors(length: float, similarity: float) -> None:
    rows = [[length, 0.0], [0.8, 0.6]]
    _, _, metrics = evaluated(get_loss("siglip"), texts(2), rows)
    assert metrics["positive_similarity"] == pytest.approx(similarity)


@pytest.mark.parametrize(
    ("name", "settings", "count", "layout"),
    [
        (
            "multiple_negatives_ranking",
            {},
            3,
            "B queries, then B positives, so the number of datums must be a multiple of 2",
        ),
        (
            "multiple_negatives_ranking",
            {"num_hard_negatives": 2},
            6,
            "B queries, then B positives, then B negatives 1, then B negatives 2, so the number of datums must be a multiple of 4",
        ),
        ("ntxent", {}, 1, "B first views, then B second views, so the number of datums must be a multiple of 2"),
        ("siglip", {}, 5, "B queries, then B documents, so the number of datums must be a multiple of 2"),
        (
            "triplet",
            {},
            4,
            "B anchors, then B positives, then B negatives, so the number of datums must be a multiple of 3",
        ),
    ],
)
def test_a_count_that_the_layout_cannot_have_is_refused_before_any_forward(
    name: str, settings: dict[str, Any], count: int, layout: str
) -> None:
    with pytest.raises(ShapeError) as caught:
        get_loss(name, **settings).check(texts(count))
    assert str(caught.value) == f"{name} takes {layout}; got {count} datums"
