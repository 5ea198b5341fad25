"""Numbers worked by hand from the formulas, under every reduction, values beside gradients.

Two responses, the first position of each masked. For instance importance sampling, first response, second token:
r = exp(-1.0 + 1.1) = 1.105171, A = 1, so the loss is -1.105171 and so is its slope; the three other tokens of either
response give -0.606531, 0.183940, 0.674929 and 0.409365, and the five together -0.443467.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook import Datum, get_loss, kl_estimate

from .cases import assert_rows_equal, datum, evaluated

LOGPROBS = [[-0.5, -1.0, -2.0], [-0.2, -3.0, -0.1, -1.2]]
WEIGHTS = [[0, 1, 1], [0, 1, 1, 1]]
SAMPLING = [[-0.7, -1.1, -1.5], [-0.9, -2.0, -0.4, -1.0]]
REFERENCE = [[-0.6, -1.2, -1.8], [-0.3, -2.5, -0.2, -1.1]]
ADVANTAGES = [[1.0] * 3, [-0.5] * 4]
NORM_LENGTH = 4
#: The numbers have six decimals, and the inputs are stored in float32.
TOLERANCE = 1e-6

#: What the sum's gradient is divided by in each response: 5 tokens, 2 and 3 of them in 2 responses.
DIVISORS = {
    "sum": (1, 1),
    "token-mean": (5, 5),
    "seq-mean-token-mean": (2 * 2, 2 * 3),
    "seq-mean-token-sum": (2, 2),
    "seq-mean-token-sum-norm": (2 * NORM_LENGTH, 2 * NORM_LENGTH),
}


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return kl_estimate(logprobs, ref_logprobs, "k1")


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return kl_estimate(logprobs, ref_logprobs, "k3")


#: name, loss, value under each reduction in the order of DIVISORS, gradient of the sum.
GOLDEN: list[tuple[str, str | Callable[..., Any], list[float], list[list[float]]]] = [
    (
        "cross_entropy",
        "cross_entropy",
        [7.300000, 1.460000, 1.466667, 3.650000, 0.912500],
        [[0, -1, -1], [0, -1, -1, -1]],
    ),
    (
        "importance_sampling",
        "importance_sampling",
        [-0.443467, -0.088693, -0.216553, -0.221734, -0.055433],
        [[0, -1.105171, -0.606531], [0, 0.183940, 0.674929, 0.409365]],
    ),
    (
        "ppo, whose second response has a token clipped at 0.8",
        "ppo",
        [-0.227407, -0.045481, -0.180543, -0.113703, -0.028426],
        [[0, -1.105171, -0.606531], [0, 0, 0.674929, 0.409365]],
    ),
    (
        "cispo",
        "cispo",
        [1.207682, 0.241536, 0.394466, 0.603841, 0.150960],
        [[0, -1.105171, -0.606531], [0, 0.183940, 0.674929, 0.409365]],
    ),
    (
        "gspo_token, whose second response is clipped",
        "gspo_token",
        [-0.137912, -0.027582, -0.159440, -0.068956, -0.017239],
        [[0, -0.818731, -0.818731], [0, 0, 0, 0]],
    ),
    (
        "KL estimate k1",
        k1,
        [-0.500000, -0.100000, -0.083333, -0.250000, -0.062500],
        [[0, 1, 1], [0, 1, 1, 1]],
    ),
    (
        "KL estimate k3",
        k3,
        [0.198863, 0.039773, 0.036488, 0.099432, 0.024858],
        [[0, 0.181269, -0.221403], [0, -0.648721, 0.095163, -0.105171]],
    ),
]


def responses() -> list[Datum]:
    """The two responses with everything that any of these losses reads."""
    return [
        datum(len(w), weights=w, sampling_logprobs=q, ref_logprobs=f, advantages=a)
        for w, q, f, a in zip(WEIGHTS, SAMPLING, REFERENCE, ADVANTAGES, strict=True)
    ]


@pytest.mark.parametrize(
    ("loss", "reduction", "value", "slopes"),
    [
        pytest.param(loss, reduction, value, slopes, id=f"{name} under {reduction}")
        for name, loss, values, slopes in GOLDEN
        for reduction, value in zip(DIVISORS, values, strict=True)
    ],
)
def test_value_and_gradient_are_those_worked_by_hand(
    loss: Any, reduction: str, value: float, slopes: list[list[float]]
) -> None:
    config = {"reduction": reduction}
    if reduction == "seq-mean-token-sum-norm":
        config["norm_length"] = NORM_LENGTH  # type: ignore[assignment]
    total, gradients, _ = evaluated(get_loss(loss, **config), responses(), LOGPROBS)
    assert total == pytest.approx(value, abs=TOLERANCE)
    expected = [[slope / by for slope in row] for row, by in zip(slopes, DIVISORS[reduction], strict=True)]
    assert_rows_equal(gradients, expected, TOLERANCE)


def test_grpo_is_ppo_plus_its_share_of_the_kl_divergence() -> None:
    # 5 tokens: -0.227407 + 0.001 * 0.198863, over 5.
    total, gradients, metrics = evaluated(get_loss("grpo"), responses(), LOGPROBS)
    assert total == pytest.approx((-0.227407 + 0.001 * 0.198863) / 5, abs=TOLERANCE)
    first = [0, (-1.105171 + 0.001 * 0.181269) / 5, (-0.606531 - 0.001 * 0.221403) / 5]
    assert_rows_equal(gradients[:1], [first], TOLERANCE)
    assert metrics["ref_kl"] == pytest.approx(0.198863 / 5, abs=TOLERANCE)
    assert metrics["clip_fraction"] == pytest.approx(1 / 5)


def test_policy_metrics_are_those_worked_by_hand() -> None:
    ratios = [math.exp(0.1), math.exp(-0.5), math.exp(-1.0), math.exp(0.3), math.exp(-0.2)]
    _, _, metrics = evaluated(get_loss("ppo"), responses(), LOGPROBS)
    assert metrics == pytest.approx(
        {
            "nll": 7.3 / 5,
            "entropy_estimate": 7.3 / 5,
            "ratio_mean": sum(ratios) / 5,
            "ratio_max": math.exp(0.3),
            "ratio_capped": 0.0,
            "sampling_kl_k1": 1.3 / 5,  # mean of q - p: -0.1 + 0.5 + 1.0 - 0.3 + 0.2
            "sampling_kl_k3": (sum(ratios) - 5 + 1.3) / 5,  # mean of r - 1 - log r
            "clip_fraction": 1 / 5,
        },
        abs=TOLERANCE,
    )


def test_cross_entropy_of_several_targets_is_finite_beside_an_impossible_one_of_weight_zero() -> None:
    # .6*.5 + .3*1.5 + .1*2.5 + .7*1 + .3*2 = 2.3
    weights = [[0.6, 0.3, 0.1], [0.7, 0.3, 0.0]]
    data = [datum([[1, 2, 3], [4, 5, 6]], weights=weights)]
    total, gradients, _ = evaluated(
        get_loss("cross_entropy"), data, [[[-0.5, -1.5, -2.5], [-1.0, -2.0, float("-inf")]]]
    )
    assert total == pytest.approx(2.3, abs=TOLERANCE)
    assert_rows_equal(gradients, [-torch.tensor(weights)], TOLERANCE)


def test_dpo_of_a_margin_of_two_nats() -> None:
    # Sums: policy -10 and -14, reference -11 and -13, so the margin is 1 - (-1) = 2 and the loss -log σ(0.2).
    data = [
        datum(5, weights=[1] * 5, ref_logprobs=[-1, -4, -2, -3, -1]),
        datum(7, weights=[1] * 7, ref_logprobs=[-1, -1, -2, -2, -2, -2, -3]),
    ]
    total, gradients, metrics = evaluated(get_loss("dpo"), data, [[-2.0] * 5, [-2.0] * 7])
    assert total == pytest.approx(0.5981389, abs=1e-7)
    slope = 0.1 / (1 + math.exp(0.2))
    assert_rows_equal(gradients, [[-slope] * 5, [slope] * 7], 1e-9)
    assert metrics == pytest.approx(
        {"nll": 2.0, "accuracy": 1.0, "margin": 2.0, "chosen_reward": 0.1, "rejected_reward": -0.1, "score_capped": 0.0}
    )


def test_info_nce_of_two_pairs_in_the_plane() -> None:
    # Similarities: query 1 with the documents .8 and 0, query 2 with them .96 and .8.
    embeddings = [[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, 1.0]]
    total, _, metrics = evaluated(get_loss("info_nce", temperature=1.0), [datum()] * 4, embeddings)
    assert total == pytest.approx(0.5737222, abs=1e-7)
    to_documents = [math.log(math.exp(0.8) + 1) - 0.8, math.log(math.exp(0.96) + math.exp(0.8)) - 0.8]
    to_queries = [math.log(math.exp(0.8) + math.exp(0.96)) - 0.8, math.log(1 + math.exp(0.8)) - 0.8]
    assert metrics == pytest.approx(
        {
            "in_batch_recall_at_1": 0.5,  # the second query is nearer to the first document
            "query_to_document": sum(to_documents) / 2,
            "document_to_query": sum(to_queries) / 2,
            "positive_similarity": 0.8,
            "negative_similarity": 0.96 / 2,
            "masked_duplicates": 0.0,
        }
    )
