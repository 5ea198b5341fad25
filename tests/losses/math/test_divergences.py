"""Divergences, and the check that says whether a function is one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook.datums.errors import LossCheckError
from lossbook.losses.math.divergences import forward_kl, jsd, reverse_kl, with_tail
from lossbook.losses.testing import check_divergence

NEVER = -math.inf


def logs(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_divergences_of_three_tokens() -> None:
    student, teacher = logs(0.5, 0.3, 0.2), logs(0.2, 0.5, 0.3)
    assert float(forward_kl(student, teacher)) == pytest.approx(0.1937942, abs=1e-7)
    assert float(reverse_kl(student, teacher)) == pytest.approx(0.2238047, abs=1e-7)
    assert float(jsd(student, teacher)) == pytest.approx(0.0508746, abs=1e-7)


@pytest.mark.parametrize(
    ("function", "value"),
    [
        pytest.param(forward_kl, math.log(2), id="the teacher rules out half of what the student does"),
        pytest.param(reverse_kl, math.inf, id="the student does what the teacher never would"),
        pytest.param(
            jsd, 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * math.log(2), id="never more than ln 2"
        ),
    ],
)
def test_a_token_that_one_side_rules_out(function: Callable[..., Tensor], value: float) -> None:
    assert float(function(logs(0.5, 0.5, 0.0), logs(1.0, 0.0, 0.0))) == pytest.approx(value, abs=1e-12)


def test_a_token_that_one_side_rules_out_leaves_the_gradient_of_jsd_finite() -> None:
    student, teacher = (logs(*p).requires_grad_() for p in ((0.5, 0.5, 0.0, 0.0), (0.5, 0.0, 0.5, 0.0)))
    slopes = torch.autograd.grad(jsd(student, teacher, 0.25), (student, teacher))
    # (1 - beta) s log(s / m), and beta t log(t / m): m is (1/2, 3/8, 1/8, 0)
    assert slopes[0].tolist() == pytest.approx([0.0, 0.375 * math.log(4 / 3), 0.0, 0.0], abs=1e-12)
    assert slopes[1].tolist() == pytest.approx([0.0, 0.0, 0.125 * math.log(4), 0.0], abs=1e-12)


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        pytest.param("drop", [0.5, 0.25, 0.0], id="drop: as they are"),
        pytest.param("renormalise", [2 / 3, 1 / 3, 0.0], id="renormalise: a distribution among themselves"),
        pytest.param("bin", [0.5, 0.25, 0.0, 0.25], id="bin: one more token"),
    ],
)
def test_what_becomes_of_the_other_tokens(tail: Any, expected: list[float]) -> None:
    present = torch.tensor([True, True, False])
    completed = with_tail(logs(0.5, 0.25, 0.125), present, tail)
    assert completed.exp().tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("function", "promises"),
    [
        (forward_kl, {}),
        (reverse_kl, {}),
        (jsd, {"symmetric": True}),
        (jsd, {"beta": 0.1}),
        (jsd, {"continuous_in": "beta", "ends": (0.01, 0.99)}),
    ],
)
def test_our_divergences_are_divergences(function: Callable[..., Tensor], promises: dict[str, Any]) -> None:
    check_divergence(function, max_examples=10, **promises)


def probabilities(*logprobs: Tensor) -> list[Tensor]:
    """In float32 at least."""
    return [x.exp().to(torch.promote_types(x.dtype, torch.float32)) for x in logprobs]


def cross_entropy(p: Tensor, q: Tensor) -> Tensor:
    return -(p.exp() * q).nan_to_num(0).sum(-1)


def negative(p: Tensor, q: Tensor) -> Tensor:
    one, other = probabilities(p, q)
    return -(one - other).square().sum(-1)


def of_the_first_token(p: Tensor, q: Tensor) -> Tensor:
    one, other = probabilities(p, q)
    return (one - other).abs()[..., 0]


def weighed_by_place(p: Tensor, q: Tensor) -> Tensor:
    one, other = probabilities(p, q)
    return ((one - other).abs() * torch.arange(1, p.shape[-1] + 1)).sum(-1)


def masked_by_multiplying(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1)


def masked_behind_the_logarithm(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(p > NEVER, p.exp() * (p - q), 0.0).sum(-1)


def in_low_precision(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() - q.exp()).abs().sum(-1)


def reduced(p: Tensor, q: Tensor) -> Tensor:
    return forward_kl(p, q).mean()


def with_special_ends(p: Tensor, q: Tensor, beta: float) -> Tensor:
    ends = {0.0: forward_kl, 1.0: reverse_kl}
    return ends[beta](p, q) if beta in ends else jsd(p, q, beta)


@pytest.mark.parametrize(
    ("function", "promises", "message"),
    [
        (cross_entropy, {}, "where both are equal"),
        (negative, {}, "below 0"),
        (of_the_first_token, {}, "though both differ by|in another order"),
        (weighed_by_place, {}, "when the tokens are put in another order"),
        (masked_by_multiplying, {}, "when a token is added that both rule out"),
        (masked_behind_the_logarithm, {}, "its gradient is not finite when both rule a token out"),
        (in_low_precision, {}, "computed in float32 it is"),
        (reduced, {}, "not one number per row"),
        (forward_kl, {"symmetric": True}, "when the arguments are swapped"),
        (with_special_ends, {"beta": 0.5, "continuous_in": "beta"}, "it jumps at the end of beta"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_divergence_is_told_why(
    function: Callable[..., Tensor], promises: dict[str, Any], message: str
) -> None:
    with pytest.raises(LossCheckError, match=message) as raised:
        check_divergence(function, max_examples=10, **promises)
    assert "at log_softmax(" in str(raised.value)
