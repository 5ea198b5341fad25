"""Losses over the whole softmax: numbers by hand, and mixtures whose parts read different outputs of the model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lossbook import get_loss
from lossbook.datums.errors import InvalidLogprobError, LossConfigError, NonFiniteLossInput

from ..cases import assert_rows_equal, datum, evaluated, evaluated_by_name


def softmax_outputs(logits: torch.Tensor, targets: list[int]) -> dict[str, list[torch.Tensor]]:
    """What a model with these logits [T, V] says of one datum."""
    everything = logits.log_softmax(-1)
    return {
        "logprobs": [everything.gather(1, torch.tensor(targets)[:, None])[:, 0]],
        "mean_logprobs": [everything.mean(-1)],
        "logsumexp": [logits.logsumexp(-1)],
    }


@pytest.mark.parametrize(
    ("epsilon", "loss"),
    [
        pytest.param(0.0, 0.3567, id="no smoothing: cross-entropy"),
        pytest.param(0.1, 0.5026, id="a tenth spread: .9 x .3567 + .1 x 1.8161"),
        pytest.param(1.0, 1.8161, id="all spread: the target plays no part"),
    ],
)
def test_a_label_of_one_token_in_four_is_smoothed(epsilon: float, loss: float) -> None:
    # p = (.7, .1, .1, .1): -log .7 = .3567, and the mean of -log p is (.3567 + 3 x 2.3026) / 4 = 1.8161
    probabilities = [0.7, 0.1, 0.1, 0.1]
    mean = sum(math.log(p) for p in probabilities) / 4
    outputs = {"logprobs": [[math.log(0.7)]], "mean_logprobs": [[mean]]}
    value, gradients, metrics = evaluated_by_name(get_loss("label_smoothing", epsilon=epsilon), [datum(1)], outputs)
    assert value == pytest.approx(loss, abs=5e-5)
    assert value == pytest.approx((1 - epsilon) * math.log(10 / 7) - epsilon * mean, rel=1e-12)
    assert_rows_equal(gradients["logprobs"], [[epsilon - 1]], 1e-15)
    assert_rows_equal(gradients["mean_logprobs"], [[-epsilon]], 1e-15)
    assert metrics["uniform_nll"] == pytest.approx(-mean)


def test_the_smallest_smoothed_loss_is_the_labels_own_entropy_and_is_reached_there() -> None:
    # epsilon .2 over four tokens: labels (.85, .05, .05, .05)
    labels = torch.tensor([[0.85, 0.05, 0.05, 0.05]], dtype=torch.float64)
    logits = labels.log().requires_grad_()
    value, _ = get_loss("label_smoothing", epsilon=0.2)([datum(1)], softmax_outputs(logits, [0]))
    assert float(value.detach()) == pytest.approx(-float((labels * labels.log()).sum()), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, logits)[0], torch.zeros_like(labels), rtol=0, atol=1e-15)


def test_smoothing_has_the_usual_default_and_is_a_share() -> None:
    assert get_loss("label_smoothing").settings == {"epsilon": 0.1}
    for wrong in (-0.1, 1.1):
        with pytest.raises(LossConfigError, match="epsilon"):
            get_loss("label_smoothing", epsilon=wrong)


def test_smoothing_of_a_soft_label_spreads_a_share_of_each_candidate() -> None:
    outputs = {"logprobs": [[[-1.0, -2.0]]], "mean_logprobs": [[-4.0]]}
    data = [datum([[1, 2]], weights=[[0.75, 0.25]])]
    value, gradients, _ = evaluated_by_name(get_loss("label_smoothing", epsilon=0.5), data, outputs)
    assert value == 0.5 * (0.75 * 1 + 0.25 * 2) + 0.5 * 4
    assert_rows_equal(gradients["logprobs"], [[[-0.375, -0.125]]], 0)
    assert_rows_equal(gradients["mean_logprobs"], [[-0.5]], 0)


@pytest.mark.parametrize(
    ("settings", "logsumexp", "loss", "gradient"),
    [
        pytest.param({"coefficient": 0.5}, 3.0, 4.5, 3.0, id="logits drifted up: drawn down"),
        pytest.param({"coefficient": 0.5}, -2.0, 2.0, -2.0, id="logits drifted down: drawn up"),
        pytest.param({"coefficient": 0.5}, 0.0, 0.0, 0.0, id="at 0: left alone"),
        pytest.param({}, 3.0, 9e-4, 6e-4, id="PaLM's coefficient by default"),
    ],
)
def test_the_z_loss_draws_the_logarithmic_sum_to_0(
    settings: dict[str, Any], logsumexp: float, loss: float, gradient: float
) -> None:
    value, gradients, _ = evaluated(get_loss("z_loss", **settings), [datum(1)], [[logsumexp]])
    assert value == pytest.approx(loss, rel=1e-12)
    assert_rows_equal(gradients, [[gradient]], 1e-15)


def test_the_z_loss_reports_the_mean_and_the_farthest_from_0() -> None:
    _, _, metrics = evaluated(get_loss("z_loss"), [datum(3)], [[-5.0, 3.0, 1.0]])
    assert metrics == {"logsumexp": pytest.approx(-1 / 3), "logsumexp_max": 5.0}


MIXTURES = [
    get_loss("cross_entropy") + get_loss("z_loss", coefficient=0.5),
    get_loss("z_loss", coefficient=0.5) + get_loss("cross_entropy"),
]


@pytest.mark.parametrize("mixture", MIXTURES, ids=["cross-entropy first", "z_loss, which reads no logprobs, first"])
def test_a_mixture_feeds_each_part_its_own_output(mixture: Any) -> None:
    data = [datum(2, weights=[0, 1]), datum(2, weights=[2, 1])]
    outputs = {
        "logprobs": [[float("nan"), -1.0], [-2.0, -3.0]],
        "logsumexp": [[float("nan"), 1.0], [2.0, 4.0]],
    }
    value, gradients, metrics = evaluated_by_name(mixture, data, outputs)
    assert value == (1 + 2 * 2 + 3) + 0.5 * (1 + 2 * 4 + 16)
    assert_rows_equal(gradients["logprobs"], [[0, -1], [-2, -1]], 0)
    assert_rows_equal(gradients["logsumexp"], [[0, 1], [4, 4]], 0)
    assert metrics.keys() == {"cross_entropy/nll", "z_loss/logsumexp", "z_loss/logsumexp_max"}


def test_a_position_with_several_targets_counts_once_in_the_z_loss_where_its_weights_add_up_to_one() -> None:
    # As many positions as targets: a value of a position must not be taken for one of a target.
    data = [datum([[1, 2], [3, 4]], weights=[[0.75, 0.25], [0.0, 1.0]])]
    outputs = {"logprobs": [[[-1.0, -2.0], [-9.0, -3.0]]], "logsumexp": [[2.0, 4.0]]}
    mixture = get_loss("cross_entropy") + get_loss("z_loss", coefficient=0.5)
    value, gradients, _ = evaluated_by_name(mixture, data, outputs)
    assert value == (0.75 + 0.5 + 3) + 0.5 * (4 + 16)
    assert_rows_equal(gradients["logsumexp"], [[2.0, 4.0]], 0)


@pytest.mark.parametrize(
    ("name", "outputs", "error", "message"),
    [
        pytest.param(
            "z_loss",
            {"logsumexp": [[1.0], [float("nan"), float("inf")]]},
            NonFiniteLossInput,
            r"z_loss: the model's logsumexp of datum 1 are inf at position 1, .*Has the model diverged\?",
            id="an infinite logsumexp",
        ),
        pytest.param(
            "entropy_bonus",
            {"entropy": [[float("nan")], [1.0, 1.0]]},
            NonFiniteLossInput,
            "entropy_bonus: the model's entropy of datum 0 are nan at position 0",
            id="an entropy that is not a number",
        ),
        pytest.param(
            "label_smoothing",
            {"logprobs": [[-1.0], [-1.0, -1.0]], "mean_logprobs": [[-5.0], [-5.0, -math.inf]]},
            NonFiniteLossInput,
            "mean_logprobs of datum 1 are -inf at position 1.*or does it rule tokens out",
            id="a vocabulary with forbidden tokens",
        ),
        pytest.param(
            "label_smoothing",
            {"logprobs": [[-1.0], [-1.0, -1.0]], "mean_logprobs": [[5.0], [-5.0, -5.0]]},
            InvalidLogprobError,
            "mean_logprobs of datum 0 are 5 at position 0: a log-probability is at most 0",
            id="a mean logprob above 0",
        ),
    ],
)
def test_an_output_that_no_loss_can_use_is_named_with_its_place(
    name: str, outputs: dict[str, Any], error: type[Exception], message: str
) -> None:
    data = [datum(1, weights=[1]), datum(2, weights=[0, 1])]
    tensors = {key: [torch.tensor(row) for row in rows] for key, rows in outputs.items()}
    with pytest.raises(error, match=message):
        get_loss(name)(data, tensors)
