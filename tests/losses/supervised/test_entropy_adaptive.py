"""`eaft` by hand: cross-entropy where the model is undecided, nothing where it is sure."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook import get_loss
from lossbook.datums.errors import LossConfigError

from ..cases import datum


def outputs(rows: list[list[float]], logprobs: list[float]) -> dict[str, list[Tensor]]:
    return {
        "logprobs": [torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)],
        "topk_logprobs": [torch.tensor(rows, dtype=torch.float64).log().requires_grad_()],
    }


def test_the_weight_is_the_share_of_the_largest_entropy() -> None:
    loss, data = get_loss("eaft", top_k=2), [datum(3, weights=[1, 1, 2])]
    given = outputs([[0.4, 0.4], [0.6, 0.2], [0.9, 0.0001]], [-1.0, -2.0, -3.0])
    value, metrics = loss(data, given)
    # of [1/2, 1/2], ln 2 / ln 2 = 1; of [3/4, 1/4], (3/4 ln 4/3 + 1/4 ln 4) / ln 2 = 0.811278; of [1, 1e-4], 0.001633
    weights = [1.0, 0.8112781244591328, _entropy(0.0001 / 0.9001)]
    assert float(value.detach()) == pytest.approx((1 + 2 * weights[1] + 2 * 3 * weights[2]) / 4)
    assert metrics["entropy_weight"] == pytest.approx(sum(weights) / 3)
    assert metrics["topk_mass"] == pytest.approx((0.8 + 0.8 + 0.9001) / 3)
    slope, other = torch.autograd.grad(value, [given["logprobs"][0], given["topk_logprobs"][0]], allow_unused=True)
    torch.testing.assert_close(slope, torch.tensor([-1, -weights[1], -2 * weights[2]], dtype=torch.float64) / 4)
    assert other is None, "no gradient goes through the weight"


def _entropy(share: float) -> float:
    return -(share * math.log(share) + (1 - share) * math.log(1 - share)) / math.log(2)


@pytest.mark.parametrize(
    ("alpha", "weight"), [(0.0, 1.0), (2.0, 0.8112781244591328**2), (0.5, 0.8112781244591328**0.5)]
)
def test_alpha_is_the_power_of_the_weight(alpha: float, weight: float) -> None:
    value, _ = get_loss("eaft", top_k=2, alpha=alpha)([datum(1, weights=[1])], outputs([[0.6, 0.2]], [-2.0]))
    assert float(value.detach()) == pytest.approx(2 * weight)


def test_a_sure_model_is_not_pushed() -> None:
    value, _ = get_loss("eaft", top_k=2)([datum(1, weights=[1])], outputs([[1.0, 1e-300]], [-50.0]))
    assert float(value.detach()) == pytest.approx(0.0, abs=1e-12)


def test_its_defaults_are_those_of_the_paper() -> None:
    assert get_loss("eaft").settings == {"alpha": 1.0, "top_k": 20}


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_k": 0}, {"alpha": -1.0}], ids=str)
def test_what_has_no_meaning_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(LossConfigError, match=r"^eaft: "):
        get_loss("eaft", **settings)


def test_on_logits_it_reads_the_entropy_of_the_likeliest() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 4, 30, dtype=torch.float64), torch.tensor([[3, 5, -100, 7]])
    value, _ = get_loss("eaft", top_k=5).on_logits(logits, labels)
    every = logits[0].log_softmax(-1)
    best = logits[0].topk(5, dim=-1).values.softmax(-1)
    weights = -(best * best.log()).sum(-1) / math.log(5)
    kept = [0, 1, 3]
    expected = sum(-weights[t] * every[t, labels[0, t]] for t in kept) / 3
    torch.testing.assert_close(value, expected)
