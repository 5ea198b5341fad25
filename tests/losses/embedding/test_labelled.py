"""Triplets that a batch holds, in numbers to be redone on paper."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lossbook import Datum, ModelInput, get_loss
from lossbook.datums.errors import EmptyLossError

from ..cases import assert_rows_equal, evaluated, leaves

#: On a line: a at 0 and b at 1 of one class, c at 3 and d at 7 of another.
LINE = [[0.0, 0.0], [1.0, 0.0], [3.0, 0.0], [7.0, 0.0]]


def of_classes(*ids: int) -> list[Datum]:
    return [Datum(ModelInput.from_ints([1, 2]), {"class_id": i}) for i in ids]


FOUR = of_classes(0, 0, 1, 1)
NOTHING = [[0.0, 0.0]] * 4


def test_each_text_has_its_hardest_triplet() -> None:
    # a: 1 - 3, b: 1 - 2, c: 4 - 2, d: 4 - 6; the margin is 5.
    value, gradients, metrics = evaluated(get_loss("batch_hard_triplet"), FOUR, LINE)
    assert value == pytest.approx((3 + 4 + 7 + 3) / 4)
    # Added up over the four: a -1, b +1 +2 +1 +1, c -1 -1 -2 -1, d +1 +0.
    assert_rows_equal(gradients, [[-0.25, 0], [1.25, 0], [-1.25, 0], [0.25, 0]], 1e-12)
    assert metrics == {"active": 1, "positive_distance": 2.5, "negative_distance": 13 / 4, "without_triplet": 0}


def test_a_triplet_that_keeps_the_margin_is_left_alone() -> None:
    # Without margin only c, of 4 against 2, is wrong.
    value, gradients, metrics = evaluated(get_loss("batch_hard_triplet", margin=0.0), FOUR, LINE)
    assert value == pytest.approx(2 / 4)
    assert_rows_equal(gradients, [[0, 0], [0.25, 0], [-0.5, 0], [0.25, 0]], 1e-12)
    assert metrics["active"] == 0.25


def test_the_soft_margin_never_ends() -> None:
    value, _, metrics = evaluated(get_loss("batch_hard_soft_margin_triplet"), FOUR, LINE)
    assert value == pytest.approx(sum(math.log1p(math.exp(x)) for x in (-2, -1, 2, -2)) / 4)
    assert metrics == {"positive_distance": 2.5, "negative_distance": 13 / 4, "without_triplet": 0}


def test_all_triplets_above_zero_are_averaged() -> None:
    # At margin 1: (c, d, a) 1 + 4 - 3 and (c, d, b) 1 + 4 - 2; (b, a, c) is 0, which is not above it; the others are below.
    value, gradients, metrics = evaluated(get_loss("batch_all_triplet", margin=1.0), FOUR, LINE)
    assert value == pytest.approx((2 + 3) / 2)
    assert_rows_equal(gradients, [[0.5, 0], [0.5, 0], [-2, 0], [1, 0]], 1e-12)
    assert metrics == {"active": 2 / 8, "triplets": 8}


def test_the_negative_of_a_pair_is_the_next_farther_one() -> None:
    # (a, b) at 1: 3; (b, a) at 1: 2; (c, d) at 4: none is farther, the farthest is a at 3; (d, c) at 4: 6. The margin is 5.
    value, gradients, metrics = evaluated(get_loss("batch_semi_hard_triplet"), FOUR, LINE)
    assert value == pytest.approx((3 + 4 + 6 + 3) / 4)
    # (a, b, c): b +1, c -1; (b, a, c): a -1, b +2, c -1; (c, d, a): a +1, c -2, d +1; (d, c, b): b +1, c -1.
    assert_rows_equal(gradients, [[0, 0], [1, 0], [-1.25, 0], [0.25, 0]], 1e-12)
    assert metrics == {"active": 1, "semi_hard": 0.75}
    short, _, metrics = evaluated(get_loss("batch_semi_hard_triplet", margin=0.5), FOUR, LINE)
    assert short == pytest.approx(1.5 / 4), "only (c, d, a)"
    assert metrics["active"] == 0.25


def test_a_negative_as_far_as_the_positive_is_not_beyond_it() -> None:
    # a at 0, p at 2, negatives at -2 and 3: beyond p from a lies 3 alone; beyond a from p none, whose farthest is 4 away
    data, rows = of_classes(0, 0, 1, 2), [[0.0], [2.0], [-2.0], [3.0]]
    value, _, metrics = evaluated(get_loss("batch_semi_hard_triplet", margin=3.0), data, rows)
    assert value == pytest.approx(((3 + 2 - 3) + (3 + 2 - 4)) / 2)
    assert metrics["semi_hard"] == 1


def test_no_texts_hold_no_triplets() -> None:
    for name in ("batch_hard_triplet", "batch_semi_hard_triplet", "batch_all_triplet"):
        assert float(get_loss(name).terms([], {"embeddings": []})[0]) == 0, name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # At a right angle within each class, in line across: 1 - cos is 1 to the own class, 0 and 1 to the other.
        ("batch_hard_triplet", 1 - 0 + 5.0),
        ("batch_hard_soft_margin_triplet", math.log1p(math.e)),
        ("batch_all_triplet", (5 + 1 - 0 + 5 + 1 - 1) / 2),
        ("batch_semi_hard_triplet", 5 + 1 - 1.0),
    ],
)
def test_by_cosine_lengths_do_not_count(name: str, value: float) -> None:
    rows = [[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 4.0]]
    found, _, metrics = evaluated(get_loss(name, distance="cosine"), FOUR, rows)
    assert found == pytest.approx(value)
    if "hard" in name and "semi" not in name:
        assert (metrics["positive_distance"], metrics["negative_distance"]) == pytest.approx((1, 0))


@pytest.mark.parametrize("name", ["batch_hard_triplet", "batch_semi_hard_triplet", "batch_all_triplet"])
def test_a_class_of_one_serves_the_others_as_a_negative_only(name: str) -> None:
    alone, _, before = evaluated(get_loss(name, margin=1.0), FOUR, LINE)
    # Nearer to d than a and b are, and far from the rest: at 9, of a third class.
    data, rows = [*FOUR, *of_classes(2)], [*LINE, [9.0, 0.0]]
    value, _, metrics = evaluated(get_loss(name, margin=1.0), data, rows)
    by_hand = {
        "batch_hard_triplet": ((0 + 0 + 3 + 0) / 4, (0 + 0 + 3 + 3) / 4),
        "batch_semi_hard_triplet": ((0 + 0 + 2 + 0) / 4, (0 + 0 + 0 + 0) / 4),
        "batch_all_triplet": ((2 + 3) / 2, (2 + 3 + 3) / 3),
    }
    assert (alone, value) == pytest.approx(by_hand[name])
    if "without_triplet" in metrics:
        assert (before["without_triplet"], metrics["without_triplet"]) == (0, 1)


@pytest.mark.parametrize("name", ["batch_hard_triplet", "batch_hard_soft_margin_triplet", "batch_semi_hard_triplet"])
@pytest.mark.parametrize("ids", [(0, 0, 0, 0), (0, 1, 2, 3)])
def test_a_batch_without_triplets_is_refused_before_any_forward(name: str, ids: tuple[int, ...]) -> None:
    with pytest.raises(EmptyLossError, match=f"{name}: reduction 'mean' has nothing to divide by"):
        get_loss(name).check(of_classes(*ids))
    total, metrics = get_loss(name).terms(of_classes(*ids), leaves([[1.0, 0.0]] * 4))
    assert float(total.detach()) == 0
    assert all(math.isnan(one.value()) for key, one in metrics.items() if key != "without_triplet")


def test_all_triplets_of_one_class_are_none() -> None:
    value, gradients, metrics = evaluated(get_loss("batch_all_triplet"), of_classes(0, 0, 0, 0), LINE)
    assert value == 0
    assert_rows_equal(gradients, NOTHING, 0)
    assert metrics["triplets"] == 0


@pytest.mark.parametrize("settings", [{}, {"distance": "cosine"}])
def test_equal_vectors_have_no_gradient_between_them(settings: dict[str, Any]) -> None:
    value, gradients, _ = evaluated(get_loss("batch_hard_triplet", **settings), FOUR, [[0.6, 0.8]] * 4)
    assert value == 5.0
    assert_rows_equal(gradients, NOTHING, 1e-12)


def test_a_triplet_is_active_however_little_it_violates() -> None:
    # hard: at margin 1.5 b is wrong by 0.5 and c by 3.5; semi-hard: at 2.5 all four are, two of them by 0.5
    assert evaluated(get_loss("batch_hard_triplet", margin=1.5), FOUR, LINE)[2]["active"] == 2 / 4
    assert evaluated(get_loss("batch_semi_hard_triplet", margin=2.5), FOUR, LINE)[2]["active"] == 1


def test_a_single_violating_triplet_is_its_own_mean() -> None:
    # (c, d, b): 2.5 - 2
    near = [[0.0, 0.0], [1.0, 0.0], [3.0, 0.0], [5.5, 0.0]]
    assert evaluated(get_loss("batch_all_triplet", margin=0.0), FOUR, near)[0] == pytest.approx(0.5)


def test_a_text_as_far_as_the_positive_is_not_beyond_it() -> None:
    # (a, b) at 1 with c at 1 on the other side: the next farther one is d at 5. (b, a) at 1: c at 2; (c, d) at 6 has none farther,
    # the farthest is b at 2; (d, c) at 6 has none, the farthest is a at 5. The margin is 0.
    ring = [[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [5.0, 0.0]]
    value, _, metrics = evaluated(get_loss("batch_semi_hard_triplet", margin=0.0), FOUR, ring)
    assert value == pytest.approx((0 + 0 + (6 - 2) + (6 - 5)) / 4)
    assert metrics["semi_hard"] == 0.5
