"""log(1 - exp(x)) against 60 decimal digits, from nearly 0 to far below."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
import torch

from lossbook.losses.math.logarithms import log1mexp


def exactly(x: float) -> tuple[float, float]:
    """log(1 - exp(x)) and its derivative -exp(x) / (1 - exp(x)), with 60 digits."""
    with localcontext() as context:
        context.prec = 60
        power = Decimal(x).exp()
        return float((1 - power).ln()), float(-power / (1 - power))


@pytest.mark.parametrize("x", [-1e-6, -1e-3, -0.1, -0.69, -0.7, -2.0, -30.0, -50.0, -700.0])
@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 1e-15), (torch.float32, 1e-6)], ids=str)
def test_no_digit_is_lost_on_either_side(x: float, dtype: torch.dtype, digits: float) -> None:
    logprobs = torch.tensor([x], dtype=dtype, requires_grad=True)
    value = log1mexp(logprobs)
    (slope,) = torch.autograd.grad(value.sum(), logprobs)
    expected, derivative = exactly(float(logprobs.detach()))
    assert float(value.detach()) == pytest.approx(expected, rel=digits, abs=1e-44)
    assert float(slope) == pytest.approx(derivative, rel=max(digits, 1e-9) * 10, abs=1e-44)


@pytest.mark.parametrize("x", [-0.99e-6, -1e-12, 0.0])
def test_above_the_highest_it_stands_still_without_a_gradient(x: float) -> None:
    logprobs = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    value = log1mexp(logprobs)
    (slope,) = torch.autograd.grad(value.sum(), logprobs)
    assert float(value.detach()) == pytest.approx(exactly(-1e-6)[0], rel=1e-12)
    assert float(slope) == 0.0


def test_at_the_highest_it_still_has_its_gradient() -> None:
    logprobs = torch.tensor([-1.0, -0.5], dtype=torch.float64, requires_grad=True)
    slopes = torch.autograd.grad(log1mexp(logprobs, highest=-1.0).sum(), logprobs)[0]
    assert slopes.tolist() == pytest.approx([exactly(-1.0)[1], 0.0])
