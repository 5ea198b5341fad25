"""What is particular to rewards as labels, with numbers worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lossbook import get_loss
from lossbook.datums.errors import MissingInput

from ..cases import assert_rows_equal, datum, evaluated


def response(group: int, advantage: float, length: int = 1, **changed: Any) -> Any:
    """A datum whose sampler gave each token -4 nats."""
    given = {"sampling_logprobs": [-4.0] * length, "advantages": [advantage] * length, "weights": [1.0] * length}
    return datum(length, **{**given, "group": group, **changed})


def test_a_right_and_a_wrong_response_are_pushed_apart() -> None:
    # On policy s is 0 for both, and either logarithm is log 2; each slope is the share 1/2 over the temperature 0.5.
    data = [response(7, 1.0), response(7, -1.0)]
    value, gradients, metrics = evaluated(get_loss("real"), data, [[-4.0], [-4.0]])
    assert value == pytest.approx(2 * math.log(2))
    assert_rows_equal(gradients, [[-1.0], [1.0]], 1e-12)
    assert (metrics["right_score"], metrics["wrong_score"], metrics["one_sided"]) == (0, 0, 0)


def test_the_responses_of_one_side_share_a_bounded_push() -> None:
    # s / 1: right ln 3; wrong 0, ln 2, and ln 4. log(1 + 1 + 2 + 4) + log(1 + 1/3); shares 1/8, 2/8, 4/8 and (1/3)/(4/3).
    data = [response(0, -1.0), response(0, 1.0), response(0, 0.0), response(0, -2.0)]
    moved = [0.0, math.log(3), math.log(2), math.log(4)]
    value, gradients, metrics = evaluated(get_loss("real", temperature=1.0), data, [[x - 4.0] for x in moved])
    assert value == pytest.approx(math.log(8) + math.log(4 / 3))
    assert_rows_equal(gradients, [[1 / 8], [-1 / 4], [2 / 8], [4 / 8]], 1e-9)
    assert metrics["right_score"] == pytest.approx(math.log(3))
    assert metrics["wrong_score"] == pytest.approx((math.log(2) + math.log(4)) / 3)


def test_a_long_response_counts_by_its_mean() -> None:
    # The wrong response's s is (0.2 + 0.4 + 0.6) / 3 = 0.4, weighted (0.2 + 0.4 + 2 * 0.6) / 4 = 0.45.
    for weights, score in (([1.0, 1.0, 1.0], 0.4), ([1.0, 1.0, 2.0], 0.45)):
        data = [response(0, -1.0, 3, weights=weights), response(0, 1.0)]
        value, gradients, _ = evaluated(get_loss("real", temperature=1.0), data, [[-3.8, -3.6, -3.4], [-4.0]])
        assert value == pytest.approx(math.log1p(math.exp(score)) + math.log(2))
        share = math.exp(score) / (1 + math.exp(score))
        assert_rows_equal(gradients, [[share * w / sum(weights) for w in weights], [-0.5]], 1e-9)


def test_a_group_of_one_kind_teaches_nothing_but_counts() -> None:
    # Members of a group may stand anywhere: groups 0 and 1 lie among each other, and 1 is all right.
    data = [response(0, 1.0), response(1, 1.0), response(0, -1.0), response(1, 2.0)]
    value, gradients, metrics = evaluated(get_loss("real", temperature=1.0), data, [[-4.0]] * 4)
    assert value == pytest.approx(2 * math.log(2) / 2)
    assert_rows_equal(gradients, [[-0.25], [0.0], [0.25], [0.0]], 1e-12)
    assert metrics["one_sided"] == 0.5
    assert evaluated(get_loss("real"), [response(0, -1.0), response(0, 0.0)], [[-4.0]] * 2)[0] == 0


def test_the_sign_of_the_mean_advantage_is_the_label() -> None:
    data = [response(0, 0.0, 2, advantages=[3.0, -1.0]), response(0, 0.0, 2, advantages=[1.0, -1.0])]
    _, gradients, _ = evaluated(get_loss("real"), data, [[-4.0, -4.0]] * 2)
    assert_rows_equal(gradients, [[-0.5, -0.5], [0.5, 0.5]], 1e-12)


def test_a_response_without_a_group_is_refused() -> None:
    data = [response(0, 1.0), datum(1, sampling_logprobs=[-4.0], advantages=[1.0], weights=[1.0])]
    with pytest.raises(MissingInput, match="'group'"):
        get_loss("real")(data, [[-4.0], [-4.0]])
