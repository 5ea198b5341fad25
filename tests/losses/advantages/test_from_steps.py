"""Advantages of single steps: numbers by hand, the laws of advantages, and what cannot be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook.datums.errors import DtypeError, LengthMismatchError, LossConfigError, NonFiniteLossInput
from lossbook.losses.returns import gigpo, optimal_token_baseline
from lossbook.losses.testing import check_advantages

NAN = float("nan")
#: Two episodes of one task. Discounted by 1/2 their returns are [1/2, 1] and [0, 0]; a is the state of both beginnings.
REWARDS, STATES = [[0, 1], [0, 0]], [["a", "b"], ["a", "c"]]
ROOT = math.sqrt(0.5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # sums 1 and 0, less their mean: ±1/2; returns from a 1/2 and 0, less their mean: ±1/4; b and c are alone
        pytest.param({}, [[0.75, 0.5], [-0.75, -0.5]], id="episode and step"),
        pytest.param({"step_weight": 2.0}, [[1.0, 0.5], [-1.0, -0.5]], id="the step's twice"),
        pytest.param({"step_weight": 0.0}, [[0.5, 0.5], [-0.5, -0.5]], id="the episode's alone"),
        pytest.param({"discount": 1.0}, [[1.0, 0.5], [-1.0, -0.5]], id="returns from a 1 and 0"),
        pytest.param(
            {"scale": "group", "epsilon": 0.0}, [[2 * ROOT, ROOT], [-2 * ROOT, -ROOT]], id="over their deviations"
        ),
        pytest.param({"scale": "group", "epsilon": 0.0, "ddof": 0}, [[2.0, 1.0], [-2.0, -1.0]], id="squares over n"),
        pytest.param(
            {"scale": "group", "epsilon": 0.25, "ddof": 0, "step_weight": 0.0},
            [[2 / 3, 2 / 3], [-2 / 3, -2 / 3]],
            id="epsilon beside a deviation of 1/2",
        ),
    ],
)
def test_gigpo_by_hand(options: dict[str, Any], expected: list[list[float]]) -> None:
    rows = gigpo(REWARDS, STATES, **{"discount": 0.5, **options})
    assert [row.tolist() for row in rows] == [pytest.approx(one) for one in expected]


def test_gigpo_discounts_by_095_as_in_verl_agent() -> None:
    # returns from a: .95 and 0
    assert gigpo(REWARDS, STATES)[0].tolist() == pytest.approx([0.5 + 0.475, 0.5])


def test_gigpo_compares_states_of_one_task_only() -> None:
    rows = gigpo([[1.0], [0.0], [5.0], [7.0]], [["a"], ["b"], ["a"], ["a"]], ["x", "x", "y", "y"])
    assert [row.tolist() for row in rows] == [[0.5], [-0.5], [-2.0], [2.0]]


def test_gigpo_counts_long_episodes_more_where_steps_are_counted() -> None:
    rows = [[0.0, 0.0, 3.0], [0.0]]
    states = [["a", "b", "c"], ["d"]]
    by_episode, by_step = (gigpo(rows, states, counted=how) for how in ("episodes", "steps"))
    assert [row.tolist() for row in by_episode] == [[1.5] * 3, [-1.5]]
    assert [row.tolist() for row in by_step] == [pytest.approx([0.75] * 3), pytest.approx([-2.25])]


def test_gigpo_compares_an_episode_with_itself_where_it_comes_back() -> None:
    (row,) = gigpo([[0.0, 2.0, 1.0]], [[(0, 1), (0, 1), "b"]], discount=1.0)
    assert row.tolist() == [0, 0, 0]  # both returns from (0, 1) are 3, and one episode has no group
    (other,) = gigpo([[1.0, 2.0, 0.0]], [["a", "a", "b"]], discount=1.0)
    assert other.tolist() == [0.5, -0.5, 0]


def test_gigpo_of_nothing_is_nothing_and_an_episode_may_have_no_step() -> None:
    assert gigpo([], []) == []
    assert [row.tolist() for row in gigpo([[], [1.0]], [[], ["a"]])] == [[], [0.5]]


def test_gigpo_keeps_the_laws_where_each_episode_is_one_step() -> None:
    def of_steps(rewards: list[float], groups: list[int]) -> torch.Tensor:
        return torch.cat(gigpo([[reward] for reward in rewards], [["start"]] * len(rewards), groups, scale="group"))

    check_advantages(of_steps, max_examples=8)


LOG = {p: math.log(p) for p in (0.25, 0.5)}
#: 1 - 2p + Σp² of p = 1/2, Σp² = 1/2 is 1/2; of p = 1/4, Σp² = 1/4 it is 3/4.
HALF, QUARTER = (LOG[0.5], 0.5), (LOG[0.25], 0.25)


def otb(rewards: Any, tokens: list[list[tuple[float, float]]], groups: Any = None, **options: Any) -> list[list[float]]:
    logprobs, squares = ([[token[k] for token in row] for row in tokens] for k in (0, 1))
    return [row.tolist() for row in optimal_token_baseline(rewards, logprobs, squares, groups, **options)]


@pytest.mark.parametrize(
    ("rewards", "tokens", "options", "expected"),
    [
        # energies so far: [1/2, 1] and [3/4, 5/4]; baselines .5/1.25 = .4 and 1/2.25
        pytest.param(
            [[0, 1], [0, 0]],
            [[HALF, HALF], [QUARTER, HALF]],
            {},
            [[0.6, 5 / 9], [-0.4, -4 / 9]],
            id="the return weighed by the energy so far",
        ),
        pytest.param(
            [[2, 1], [0, 0]],
            [[HALF, HALF], [HALF, HALF]],
            {},
            [[1.5, 0.5], [-1.5, -0.5]],
            id="equal energies: the mean; a reward counts for the steps up to it",
        ),
        pytest.param(
            [[0, 1], [0, 0]],
            [[HALF, HALF], [QUARTER, HALF]],
            {"weights": [[2.0, 1.0], [1.0, 1.0]]},
            [[1 - 2 / 2.75, 1 - 2.5 / 3.75], [-2 / 2.75, -2.5 / 3.75]],
            id="weights count squared: energies [2, 5/2]",
        ),
        pytest.param(
            [[0, 0, 1], [0.0]],
            [[HALF] * 3, [HALF]],
            {},
            [[0.5, 1, 1], [-0.5]],
            id="a step that nobody else reaches keeps its return",
        ),
        pytest.param(
            [[0, 0, 1], [0.0]],
            [[HALF] * 3, [HALF]],
            {"alone": "zero"},
            [[0.5, 0, 0], [-0.5]],
            id="or gets 0",
        ),
        pytest.param(
            [[9, 0, 0, 1], [0, 0]],
            [[HALF, QUARTER, HALF, HALF], [HALF, HALF]],
            {"masks": [[1, 0, 0, 1], [1, 1]]},
            [[5, 0, 0, 0.5], [-5, -0.5]],
            id="other tokens are no steps: the second own one is compared with the second",
        ),
        pytest.param(
            [[1], [0]],
            [[(0.0, 1.0)], [(0.0, 1.0)]],
            {},
            [[0.5], [-0.5]],
            id="all certain, without any energy: the plain mean",
        ),
        pytest.param([[0.1], [0.1], [0.1]], [[HALF], [QUARTER], [HALF]], {}, [[0], [0], [0]], id="equal: exactly 0"),
        pytest.param([[3], [1], [5]], [[HALF]] * 3, {"groups": [0, 0, 1]}, [[1], [-1], [5]], id="groups are apart"),
    ],
)
def test_the_optimal_token_baseline_by_hand(
    rewards: Any, tokens: Any, options: dict[str, Any], expected: list[list[float]]
) -> None:
    assert otb(rewards, tokens, **options) == [pytest.approx(row) for row in expected]


def test_of_nothing_there_is_no_baseline() -> None:
    assert optimal_token_baseline([], [], []) == []
    assert otb([[], [1.0]], [[], [HALF]]) == [[], [1.0]]


tokens = st.lists(st.tuples(st.floats(0.05, 1), st.floats(0, 1)), min_size=1, max_size=4)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(-3, 3), tokens), min_size=1, max_size=4))
def test_the_energy_weighs_each_steps_advantages_to_0(drawn: list[tuple[int, list[tuple[float, float]]]]) -> None:
    # Σ W_t A_t over the responses that reach step t, with energies of loops; Σp² lies between p² and 1.
    squares = [[p * p + rest * (1 - p * p) for p, rest in row] for _, row in drawn]
    logprobs = [[math.log(p) for p, _ in row] for _, row in drawn]
    rewards = [[0.0] * (len(row) - 1) + [float(reward)] for reward, row in drawn]
    rows = optimal_token_baseline(rewards, logprobs, squares, alone="zero")
    norms = [
        [1 - 2 * p + q for (p, _), q in zip(row, own, strict=True)]
        for (_, row), own in zip(drawn, squares, strict=True)
    ]
    for step in range(max(map(len, rewards))):
        there = [i for i, row in enumerate(rewards) if step < len(row)]
        energy = np.array([sum(norms[i][: step + 1]) for i in there])
        assert sum(energy * np.array([float(rows[i][step]) for i in there])) == pytest.approx(0, abs=1e-9)


def test_a_token_baseline_keeps_the_laws_where_all_energies_are_equal() -> None:
    def of_responses(rewards: list[float], groups: list[int]) -> torch.Tensor:
        return torch.tensor(
            [row[0] for row in otb([[r] for r in rewards], [[HALF]] * len(rewards), groups, alone="zero")]
        )

    check_advantages(of_responses, scaling="equivariant", max_examples=8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gigpo([[1.0]], [["a"], ["b"]]), LengthMismatchError, "1 rows of rewards but 2 of states"),
        (lambda: gigpo([[1.0, 2.0]], [["a"]]), LengthMismatchError, "row 0 has 2 rewards but 1 states"),
        (lambda: gigpo([[1.0]], [["a"]], [1, 2]), LengthMismatchError, "1 rewards but 2 group ids"),
        (lambda: gigpo([[1.0, NAN]], [["a", "b"]]), NonFiniteLossInput, "row 0: reward 1 of 2 is nan"),
        (lambda: gigpo([[1.0]], [[["a"]]]), DtypeError, "an id is a number, a string or a tuple"),
        (lambda: gigpo([[1.0]], [["a"]], discount=1.1), LossConfigError, "discount=1.1 must lie in"),
        (lambda: gigpo([[1.0]], [["a"]], step_weight=NAN), LossConfigError, "step_weight=nan must be"),
        (lambda: gigpo([[1.0]], [["a"]], counted="tokens"), LossConfigError, "counted='tokens' is none of"),
        (lambda: gigpo([[1.0]], [["a"]], scale="batches"), LossConfigError, "scale='batches' is none of"),
        (lambda: otb([[1.0]], [[HALF]], alone="half"), LossConfigError, "alone='half' is none of"),
        (lambda: otb([[1.0]], []), LengthMismatchError, "1 rows of rewards but 0 of logprobs"),
        (lambda: otb([[1.0]], [[HALF]], masks=[]), LengthMismatchError, "1 rows of rewards but 0 of masks"),
        (lambda: otb([[1.0]], [[HALF]], weights=[[1.0], [2.0]]), LengthMismatchError, "but 2 of weights"),
        (
            lambda: otb([[1.0]], [[HALF]], weights=[[1.0, 2.0]]),
            LengthMismatchError,
            "response 0: there are 1 rewards but 2 weights",
        ),
        (lambda: otb([[1.0]], [[HALF, HALF]]), LengthMismatchError, "response 0: there are 1 rewards but 2 logprobs"),
        (lambda: otb([[1.0]], [[(NAN, 0.5)]]), NonFiniteLossInput, "response 0: logprobs of step 0 of 1 is nan"),
        (lambda: otb([[1.0]], [[HALF]], [1, 2]), LengthMismatchError, "1 rewards but 2 group ids"),
        (
            lambda: otb([[0.0, 1.0, 2.0]], [[HALF, (LOG[0.5], 0.2), (LOG[0.5], 0.1)]]),
            LossConfigError,
            "sum_squares is 0.2 at step 1, less than the square of the token's own probability, 0.25",
        ),
    ],
)
def test_what_cannot_be_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_numbers_of_masked_tokens_are_not_read() -> None:
    tokens = [[HALF, (NAN, NAN)], [HALF, HALF]]
    assert otb([[1, 0], [0, 0]], tokens, masks=[[1, 0], [1, 0]]) == [[0.5, 0], [-0.5, 0]]


def test_rounding_below_the_square_is_not_refused() -> None:
    assert otb([[1], [0]], [[(0.0, 1 - 5e-5)], [HALF]]) == [pytest.approx([1.0]), pytest.approx([0.0])]
