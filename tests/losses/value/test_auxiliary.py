"""Terms that are added to a loss: numbers by hand, and that each has the gradient of what it stands for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lossbook import get_loss

from ..cases import assert_rows_equal, datum, evaluated, evaluated_by_name, rollout

LN2 = math.log(2)
#: Probabilities that float32 holds exactly, as weights.
POLICY = [0.5, 0.25, 0.125, 0.125]


@pytest.mark.parametrize(("settings", "coefficient"), [({}, 0.01), ({"coefficient": 2.0}, 2.0)], ids=["default", "2"])
def test_an_entropy_bonus_pays_for_every_nat(settings: dict[str, Any], coefficient: float) -> None:
    loss = get_loss("entropy_bonus", **settings)
    value, gradients, metrics = evaluated(loss, [datum(2, weights=[1, 3])], [[2.0, 0.5]])
    assert value == pytest.approx(-coefficient * 3.5, rel=1e-15)
    assert_rows_equal(gradients, [[-coefficient, -3 * coefficient]], 1e-15)
    assert metrics == {"entropy": 1.25}


@pytest.mark.parametrize(("settings", "coefficient"), [({}, 0.01), ({"coefficient": 2.0}, 2.0)], ids=["default", "2"])
def test_a_sampled_bonus_pushes_a_token_down_by_its_surprise(settings: dict[str, Any], coefficient: float) -> None:
    loss = get_loss("sampled_entropy_bonus", **settings)
    value, gradients, metrics = evaluated(loss, [datum(2)], [[-2.0, 0.0]])
    assert value == pytest.approx(4 * coefficient, rel=1e-15)
    # A descent along it lowers logprobs where the gradient is positive: it is negative, so unlikely tokens rise.
    assert_rows_equal(gradients, [[-2 * coefficient, 0.0]], 1e-15)
    assert metrics == {"nll": 1.0}


def of_every_token(logits: torch.Tensor, **inputs: Any) -> tuple[list[Any], list[torch.Tensor]]:
    """A datum with all four tokens as targets, weighed by how often the policy samples each."""
    return [datum([[0, 1, 2, 3]], weights=[POLICY], **inputs)], [logits.log_softmax(-1)]


def test_over_all_tokens_the_sampled_bonus_has_the_gradient_of_the_entropy_bonus() -> None:
    logits = torch.tensor([POLICY], dtype=torch.float64).log().requires_grad_()
    sampled, _ = get_loss("sampled_entropy_bonus")(*of_every_token(logits))
    (gradient,) = torch.autograd.grad(sampled, logits)
    log_softmax = logits.log_softmax(-1)
    entropy = -(log_softmax.exp() * log_softmax).sum(-1)
    whole, _ = get_loss("entropy_bonus")([datum(1)], {"entropy": [entropy]})
    (expected,) = torch.autograd.grad(whole, logits)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("estimator", "value", "gradient"),
    [
        # p = 1/2 under the policy, 1/4 under the reference: d = ln 2
        pytest.param("k1", LN2, 1.0, id="k1: d"),
        pytest.param("k2", LN2**2 / 2, LN2, id="k2: half of d squared"),
        pytest.param("k3", LN2 - 0.5, 0.5, id="k3: 1/2 - 1 + d"),
        pytest.param("abs", LN2, 1.0, id="abs"),
        pytest.param("k1+", LN2, LN2, id="k1+: k1 with the gradient of k2"),
        pytest.param("k3+", LN2 - 0.5, LN2, id="k3+: k3 with the gradient of k2"),
        pytest.param("k3-corrected", LN2 - 0.5, LN2, id="k3-corrected: k3 times a ratio of 1 that has a gradient"),
    ],
)
def test_a_token_twice_as_likely_as_under_the_reference(estimator: Any, value: float, gradient: float) -> None:
    data = [datum(1, ref_logprobs=[math.log(0.25)])]
    loss = get_loss("reference_kl", estimator=estimator)
    loss_value, gradients, metrics = evaluated(loss, data, [[math.log(0.5)]])
    assert loss_value == pytest.approx(value, rel=1e-6)  # datums hold float32
    assert_rows_equal(gradients, [[gradient]], 1e-6)
    assert metrics["ref_kl"] == loss_value


def test_two_sequences_have_the_k3_of_the_specification() -> None:
    # Four-digit inputs, so float32 costs some of the six digits.
    rows = [[-0.5, -1.0, -2.0], [-0.2, -3.0, -0.1, -1.2]]
    data = [
        datum(3, weights=[0, 1, 1], ref_logprobs=[-0.6, -1.2, -1.8]),
        datum(4, weights=[0, 1, 1, 1], ref_logprobs=[-0.3, -2.5, -0.2, -1.1]),
    ]
    value, gradients, _ = evaluated(get_loss("reference_kl"), data, rows)
    assert value == pytest.approx(0.198863, abs=1e-6)
    assert_rows_equal(gradients, [[0, 0.181269, -0.221403], [0, -0.648721, 0.095163, -0.105171]], 1e-6)
    k1, slopes, _ = evaluated(get_loss("reference_kl", estimator="k1"), data, rows)
    assert k1 == pytest.approx(-0.5, abs=1e-6)
    assert_rows_equal(slopes, [[0, 1, 1], [0, 1, 1, 1]], 0)


def test_added_to_ppo_it_is_grpo() -> None:
    data = [rollout(), rollout(advantages=[1.0, 2.0, -0.5])]
    rows = [[-0.5, -1.25, -2.5], [-1.0, -0.75, -1.5]]
    mixture = get_loss("ppo") + 0.5 * get_loss("reference_kl")
    value, gradients, _ = evaluated(mixture, data, rows)
    expected, slopes, _ = evaluated(get_loss("grpo", kl_coefficient=0.5, reduction="sum"), data, rows)
    assert value == pytest.approx(expected, rel=1e-12)
    assert_rows_equal(gradients, slopes, 1e-12)


def test_entropy_and_logprobs_go_to_their_own_parts_of_a_mixture() -> None:
    data = [rollout()]
    outputs = {"logprobs": [[-0.5, -1.25, -2.5]], "entropy": [[float("nan"), 2.0, 1.0]]}
    mixture = get_loss("ppo") + get_loss("entropy_bonus", coefficient=0.25)
    value, gradients, metrics = evaluated_by_name(mixture, data, outputs)
    alone, slopes, _ = evaluated(get_loss("ppo"), data, outputs["logprobs"])
    assert value == pytest.approx(alone - 0.75, rel=1e-12)
    assert_rows_equal(gradients["logprobs"], slopes, 1e-15)
    assert_rows_equal(gradients["entropy"], [[0, -0.25, -0.25]], 0)
    assert metrics["entropy_bonus/entropy"] == 1.5
