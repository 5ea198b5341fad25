"""wpo in numbers to be redone on paper: a pair counts as much as the policy is likely to write it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lossbook import get_loss
from lossbook.datums.errors import LossConfigError

from ..cases import assert_rows_equal, datum
from .preference_pairs import sigmoid, softplus

EXACT = {"rel": 1e-12, "abs": 1e-12}
#: Two tokens and one, beta Δ = 0.5 (2 - 1) = 0.5; the likeliest two tokens of each position.
ROWS = [[math.log(0.5), math.log(0.25)], [math.log(0.2)]]
REFERENCES = [[math.log(0.5) - 1, math.log(0.25) - 1], [math.log(0.2) - 1]]
TOPS = [[[0.5, 0.25], [0.5, 0.25]], [[0.6, 0.2]]]


def computed(**settings: Any) -> tuple[float, list[torch.Tensor], dict[str, float]]:
    data = [
        datum(len(row), weights=[1.0] * len(row), ref_logprobs=reference)
        for row, reference in zip(ROWS, REFERENCES, strict=True)
    ]
    leaves = [torch.tensor(row, dtype=torch.float64, requires_grad=True) for row in ROWS]
    width = 2 if settings.get("alignment", "sampled") == "sampled" else 20
    wide = [[[*row, *[1e-30] * (width - 2)] for row in top] for top in TOPS]
    tops = [torch.tensor(top, dtype=torch.float64).log().requires_grad_() for top in wide]
    loss = get_loss("wpo", beta=0.5, top_k=width, **settings)
    value, metrics = loss(data, {"logprobs": leaves, "topk_logprobs": tops})
    gradients = torch.autograd.grad(value, [*leaves, *tops], allow_unused=True)
    assert all(g is None or not g.any() for g in gradients[2:])  # the weight has no gradient
    return float(value.detach()), [g for g in gradients[:2] if g is not None], metrics


#: sqrt(p / Σ p²) over the two tokens of the chosen, times the same of the rejected.
SAMPLED = math.sqrt(0.5 / 0.3125 * 0.25 / 0.3125) * (0.2 / 0.4)
GREEDY = math.sqrt(1.0 * 0.5) * (0.2 / 0.6)
PLAIN = math.sqrt(0.5 * 0.25) * 0.2


@pytest.mark.parametrize(
    ("settings", "weight"),
    [
        pytest.param({}, SAMPLED, id="sampled"),
        pytest.param({"alignment": "greedy"}, GREEDY, id="greedy"),
        pytest.param({"alignment": "none"}, PLAIN, id="none"),
    ],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.25])
def test_a_pair_weighs_as_much_as_the_policy_is_likely_to_write_it(
    settings: dict[str, str], weight: float, smoothing: float
) -> None:
    value, gradients, metrics = computed(label_smoothing=smoothing, **settings)
    # DPO's Δ is 2 - 1: the policy is one nat per token above the reference.
    assert value == pytest.approx(weight * ((1 - smoothing) * softplus(-0.5) + smoothing * softplus(0.5)), rel=1e-6)
    push = -0.5 * weight * ((1 - smoothing) * sigmoid(-0.5) - smoothing * sigmoid(0.5))
    assert_rows_equal(gradients, [[push, push], [-push]], 1e-6)
    assert metrics["pair_weight"] == pytest.approx(weight, **EXACT)
    assert metrics["margin"] == pytest.approx(1.0, rel=1e-6)
    assert metrics["chosen_reward"] == pytest.approx(1.0, rel=1e-6)
    if not settings:
        assert metrics["top_mass"] == pytest.approx((0.75 + 0.75 + 0.8) / 3, rel=1e-12)


def test_a_setting_that_is_not_read_is_refused() -> None:
    for alignment in ("greedy", "none"):
        with pytest.raises(LossConfigError, match="top_k=5 is read only with alignment='sampled'"):
            get_loss("wpo", alignment=alignment, top_k=5)
