"""Losses that look at either response by itself, and those that sort the batch, in numbers to be redone on paper."""

from __future__ import annotations

import math

import pytest
import torch

from lossbook import get_loss
from lossbook.losses.preference.transport import ascending

from ..cases import assert_rows_equal, evaluated
from .preference_pairs import of_ratios, pair_of, sigmoid, softplus

EXACT = {"rel": 1e-12, "abs": 1e-12}
LN2 = math.log(2)


@pytest.mark.parametrize(
    ("loss", "beta", "c", "j", "value", "slopes"),
    [
        pytest.param("bco_pair", 1.0, 0.0, 0.0, 2 * LN2, [-0.5, 0.5], id="bco, both undecided"),
        pytest.param(
            "bco_pair",
            0.5,
            -2.0,
            -4.0,
            softplus(1) + softplus(-2),
            [-0.5 * sigmoid(1), 0.5 * sigmoid(-2)],
            id="bco, both fell",
        ),
        pytest.param(
            "nca_pair", 1.0, LN2, 0.0, 1.5 * math.log(3) - LN2 / 2, [0.0, 0.25], id="nca holds the chosen at ln 2"
        ),
        pytest.param(
            "nca_pair",
            0.5,
            2.0,
            -4.0,
            softplus(-1) + 0.5 * softplus(1) + 0.5 * softplus(-2),
            [0.5 * (-sigmoid(-1) + 0.5 * sigmoid(1)), 0.25 * sigmoid(-2)],
            id="nca pulls back a chosen response that rose further",
        ),
        pytest.param("sppo_hard", 0.25, 2.0, -2.0, 0.0, [0.0, 0.0], id="sppo at both targets"),
        pytest.param("sppo_hard", 0.25, 0.0, 1.0, 4.0 + 9.0, [-4.0, 6.0], id="sppo away from them"),
        pytest.param("apo_zero", 1.0, 0.0, 0.0, 1.0, [-0.25, 0.25], id="apo zero at the reference"),
        pytest.param(
            "apo_zero",
            0.5,
            2.0,
            -4.0,
            1 - sigmoid(1) + sigmoid(-2),
            [-0.5 * sigmoid(1) * sigmoid(-1), 0.5 * sigmoid(2) * sigmoid(-2)],
            id="apo zero, chosen up and rejected down",
        ),
        pytest.param("apo_down", 1.0, 0.0, 0.0, 1.0, [0.0, 0.25], id="apo down at the reference"),
        pytest.param(
            "apo_down",
            0.5,
            -2.0,
            -4.0,
            sigmoid(-1) + 1 - sigmoid(1),
            [0.0, 0.5 * sigmoid(1) * sigmoid(-1)],
            id="apo down, both down: only the rejected one is pushed further",
        ),
        pytest.param(
            "apo_down",
            0.5,
            2.0,
            2.0,
            sigmoid(1) + 0.5,
            [0.5 * (sigmoid(1) * sigmoid(-1) - 0.25), 0.125],
            id="apo down, both up",
        ),
    ],
)
def test_a_pair_of_one_token_each(
    loss: str, beta: float, c: float, j: float, value: float, slopes: list[float]
) -> None:
    loss_value, gradients, metrics = of_ratios(loss, c, j, beta=beta)
    assert loss_value == pytest.approx(value, **EXACT)
    assert gradients == pytest.approx(slopes, **EXACT)
    assert metrics["margin"] == pytest.approx(c - j, abs=1e-12)
    assert metrics["chosen_reward"] == pytest.approx(beta * c, abs=1e-12)
    assert metrics["rejected_reward"] == pytest.approx(beta * j, abs=1e-12)
    assert metrics["accuracy"] == (c > j)


def test_aot_compares_the_sorted_leads_of_policy_and_reference() -> None:
    # Leads 3 and 1 under the policy, 0 and 2 under the reference: sorted 1, 3 and 0, 2, so both δ are 1.
    data = [*pair_of([-4.0], [-4.0]), *pair_of([-2.0], [-4.0])]
    rows = [[-1.0], [-4.0], [-1.0], [-2.0]]
    value, gradients, metrics = evaluated(get_loss("aot", beta=1.0), data, rows)
    assert value == pytest.approx(softplus(-1), **EXACT)
    assert_rows_equal(gradients, [[s * sigmoid(-1) / 2] for s in (-1, 1, -1, 1)], 1e-12)
    assert metrics["margin"] == 1.0  # the mean of the pairs' own, 3 - 0 and 1 - 2
    assert metrics["accuracy"] == 0.5
    assert metrics["chosen_reward"] == 2.0
    assert metrics["rejected_reward"] == 1.0
    # dpo, pair by pair, says otherwise
    assert evaluated(get_loss("dpo", beta=1.0), data, rows)[0] == pytest.approx((softplus(-3) + softplus(1)) / 2)


def test_aot_unpaired_compares_the_sorted_ratios_of_either_side() -> None:
    # chosen 5, 0 and rejected 2, 4: sorted 0, 5 and 2, 4, so δ = -2 for chosen 2 and rejected 1, and 1 for the other two.
    value, gradients, metrics = of_ratios("aot_unpaired", 5.0, 2.0, 0.0, 4.0, beta=0.5)
    assert value == pytest.approx((softplus(1) + softplus(-0.5)) / 2, **EXACT)
    low, high = -0.5 * sigmoid(1) / 2, -0.5 * sigmoid(-0.5) / 2
    assert gradients == pytest.approx([high, -low, low, -high], **EXACT)
    assert metrics["margin"] == -0.5
    assert metrics["accuracy"] == 0.5


@pytest.mark.parametrize("loss", ["aot", "aot_unpaired"])
def test_label_smoothing_gives_a_share_to_the_other_order(loss: str) -> None:
    value, gradients, _ = of_ratios(loss, 2.0, 0.0, beta=1.0, label_smoothing=0.25)
    assert value == pytest.approx(0.75 * softplus(-2) + 0.25 * softplus(2), **EXACT)
    slope = -0.75 * sigmoid(-2) + 0.25 * sigmoid(2)
    assert gradients == pytest.approx([slope, -slope], **EXACT)


def test_equal_values_share_their_gradient() -> None:
    values = torch.tensor([2.0, 1.0, 2.0, 2.0], dtype=torch.float64, requires_grad=True)
    ranked = ascending(values)
    assert ranked.tolist() == [1.0, 2.0, 2.0, 2.0]
    (gradient,) = torch.autograd.grad(ranked @ torch.tensor([10.0, 1.0, 2.0, 6.0], dtype=torch.float64), values)
    assert gradient.tolist() == pytest.approx([3.0, 10.0, 3.0, 3.0])


def test_nothing_is_sorted_into_nothing() -> None:
    assert ascending(torch.zeros(0, requires_grad=True)).shape == (0,)
