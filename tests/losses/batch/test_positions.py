"""Which positions there are and which count."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lossbook import Datum, get_loss
from lossbook.losses.batch.positions import active_in, harmless, nll, positions_of, weighted_positions

from ..cases import datum, evaluated

NAN, INF = math.nan, math.inf


def test_one_target_given_as_a_number_is_one_position() -> None:
    one = Datum([5], {"target_tokens": 7, "weights": 0.5, "advantages": 4.0})
    assert positions_of(one) == 1
    assert evaluated(get_loss("cross_entropy"), [one], [[-3.0]])[0] == 1.5
    assert evaluated(get_loss("reinforce"), [one], [[-3.0]])[0] == 6


@pytest.mark.parametrize(
    ("targets", "inputs", "active"),
    [
        (3, {}, [True] * 3),
        (3, {"weights": [0.0, 0.5, -1.0]}, [False, True, True]),
        (2, {"weights": [[0.0], [2.0]]}, [False, True]),
        (2, {"weights": [[0.0, 2.0]]}, [False, True]),
        ([[1, 2], [3, 4], [5, 6]], {"weights": [[0, 0], [0, 1], [1, 1]]}, [False, True, True]),
        ([[1, 2], [3, 4], [5, 6]], {"weights": [0, 0, 0, 1, 1, 1]}, [False, True, True]),
        ([[1, 2], [3, 4], [5, 6]], {"weights": [1, 0, 1]}, [True, False, True]),
        ([[1, 2, 3]], {"weights": [0, 0, 1]}, [True]),
    ],
)
def test_a_position_counts_where_any_of_its_targets_does(targets: Any, inputs: dict[str, Any], active: list) -> None:
    assert active_in(datum(targets, **inputs)).tolist() == active


@pytest.mark.parametrize(
    ("weights", "values", "result"),
    [
        ([0.0, 1.0, 0.0], [NAN, INF, 2.0], [0, INF, 2]),
        ([0.0, 1.0], [[NAN, 1.0], [NAN, 2.0]], [[0, 1], [NAN, 2]]),
        ([[0.0, 1.0], [0.0, 0.0]], [[NAN, INF], [-INF, 3.0]], [[0, INF], [0, 3]]),
        ([[0.0, 1.0], [0.0, 0.0]], [NAN, INF], [NAN, 0]),
        ([[0.0, 1.0], [0.0, 0.0]], [[NAN, 1.0, INF], [NAN, 1.0, INF]], [[NAN, 1, INF], [0, 1, 0]]),
        ([0.0, 0.0], NAN, 0),
        ([0.0, 0.5], INF, INF),
        ([[0.0, 0.0], [0.0, 0.5]], INF, INF),
        ([[0.0, 0.0], [0.0, 0.0]], INF, 0),
        ([0.0, 0.0], 3.0, 3),
    ],
)
def test_what_is_no_number_is_0_where_nothing_has_a_weight(weights: list, values: Any, result: Any) -> None:
    given, right = (torch.tensor(one, dtype=torch.float64) for one in (values, result))
    torch.testing.assert_close(harmless(given, torch.tensor(weights)), right, equal_nan=True, rtol=0, atol=0)
    assert weighted_positions(torch.tensor(weights), given).dtype == torch.bool


def test_the_mean_negative_logprob_is_of_the_active_ones() -> None:
    logprobs = torch.tensor([-1.0, NAN, -4.0])
    assert nll(logprobs, torch.tensor([True, False, True])).value() == 2.5
    assert nll(logprobs[::2]).value() == 2.5


def test_which_positions_have_a_weight_is_said_where_the_values_are() -> None:
    for shape in ((2,), (2, 3), ()):
        assert weighted_positions(torch.ones(2), torch.ones(shape, device="meta")).device.type == "meta"


def test_a_trace_adds_nothing_where_nothing_has_a_weight() -> None:
    traced = get_loss("cross_entropy").trace()
    assert traced(torch.tensor([NAN, -3.0, -1.0]), torch.tensor([0.0, 2.0, 0.0]))[0] == 6
