"""Ratios that cannot overflow, and KL estimates: their values, their expectations, their gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossbook import kl_estimate, safe_ratio
from lossbook.datums.errors import LossCheckError
from lossbook.losses import capped_log_ratio, ratio_stats
from lossbook.losses.math.ratios import KLEstimator as Estimator
from lossbook.losses.testing import check_kl_estimator

logits = st.lists(st.floats(-4, 4), min_size=5, max_size=5)


def with_slope(difference: float, estimator: Estimator, dtype: torch.dtype = torch.float64) -> tuple[float, float]:
    logprob = torch.tensor([difference - 4.0], dtype=dtype, requires_grad=True)
    estimate = kl_estimate(logprob, torch.tensor([-4.0], dtype=dtype), estimator)
    (slope,) = torch.autograd.grad(estimate.sum(), logprob)
    return float(estimate.detach()), float(slope)


@pytest.mark.parametrize(
    ("log_ratio", "cap", "ratio", "slope"),
    [
        pytest.param(0.0, 20.0, 1.0, 1.0, id="equal: one"),
        pytest.param(math.log(2), 20.0, 2.0, 2.0, id="twice as likely: two"),
        pytest.param(3.0, 3.0, math.exp(3), math.exp(3), id="exactly at the cap: a gradient still"),
        pytest.param(3.5, 3.0, math.exp(3), 0.0, id="above the cap: held, no gradient"),
        pytest.param(-3.5, 3.0, math.exp(-3), 0.0, id="below the cap: held, no gradient"),
        pytest.param(1e4, 20.0, math.exp(20), 0.0, id="far above: still finite"),
        pytest.param(-1e4, 20.0, math.exp(-20), 0.0, id="far below: still above zero"),
    ],
)
def test_a_ratio_is_capped_before_it_is_exponentiated(log_ratio: float, cap: float, ratio: float, slope: float) -> None:
    logprob = torch.tensor(log_ratio, dtype=torch.float64, requires_grad=True)
    value = safe_ratio(logprob, torch.zeros((), dtype=torch.float64), cap)
    (gradient,) = torch.autograd.grad(value, logprob)
    assert (float(value.detach()), float(gradient)) == pytest.approx((ratio, slope))


def test_the_capped_log_ratio_is_the_difference_within_its_cap() -> None:
    log_ratios = capped_log_ratio(torch.tensor([-1.0, -30.0, 0.0]), torch.tensor([-3.0, 0.0, -30.0]))
    assert log_ratios.tolist() == [2.0, -20.0, 20.0]


@pytest.mark.parametrize(
    ("estimator", "difference", "value", "slope"),
    [
        pytest.param("k1", 0.5, 0.5, 1.0, id="k1: the log-ratio; it pushes down whatever was sampled"),
        pytest.param("k1", -0.5, -0.5, 1.0, id="k1: negative where the policy fell below the reference"),
        pytest.param("k2", 0.5, 0.125, 0.5, id="k2: half the square, pulled towards the reference"),
        pytest.param("k2", -0.5, 0.125, -0.5, id="k2: symmetric"),
        pytest.param("k3", 0.5, math.exp(-0.5) - 0.5, 1 - math.exp(-0.5), id="k3: mild where the policy rose"),
        pytest.param("k3", -0.5, math.exp(0.5) - 1.5, 1 - math.exp(0.5), id="k3: steeper where it fell"),
        pytest.param("k3", 0.0, 0.0, 0.0, id="k3: zero, and flat, where both agree"),
        pytest.param("k3", -25.0, math.exp(20) - 21, 0.0, id="k3: held at 20 nats, without a gradient"),
        pytest.param("abs", 0.5, 0.5, 1.0, id="abs: the distance, down by one where the policy rose"),
        pytest.param("abs", -0.5, 0.5, -1.0, id="abs: up by one where it fell"),
        pytest.param("abs", 0.0, 0.0, 0.0, id="abs: no push where both agree"),
        pytest.param("k1+", 0.5, 0.5, 0.5, id="k1+: the value of k1, the gradient of k2"),
        pytest.param("k1+", -25.0, -25.0, -25.0, id="k1+: not capped"),
        pytest.param("k3+", 0.5, math.exp(-0.5) - 0.5, 0.5, id="k3+: the value of k3, the gradient of k2"),
        pytest.param("k3+", -25.0, math.exp(20) - 21, -25.0, id="k3+: its value held at 20 nats, its gradient not"),
        pytest.param("k3-corrected", 0.5, math.exp(-0.5) - 0.5, 0.5, id="k3-corrected on policy: k3 and k2's gradient"),
        pytest.param("k3-corrected", -0.5, math.exp(0.5) - 1.5, -0.5, id="k3-corrected on policy, where it fell"),
    ],
)
def test_a_kl_estimate_is_its_formula(estimator: Estimator, difference: float, value: float, slope: float) -> None:
    assert with_slope(difference, estimator) == pytest.approx((value, slope))


@pytest.mark.parametrize(
    ("drift", "difference", "value", "slope"),
    [
        pytest.param(math.log(2), 0.5, 2 * (math.exp(-0.5) - 0.5), 2 * 0.5, id="twice as likely as it was sampled"),
        pytest.param(-math.log(2), 0.5, 0.5 * (math.exp(-0.5) - 0.5), 0.5 * 0.5, id="half as likely"),
        pytest.param(25.0, 0.5, math.exp(20) * (math.exp(-0.5) - 0.5), None, id="a ratio past the cap: held"),
    ],
)
def test_the_corrected_estimate_weighs_another_samplers_token_by_its_ratio(
    drift: float, difference: float, value: float, slope: float | None
) -> None:
    # Slope of r k3: r (k3 + 1 - exp(-d)) = r d. Past the cap r has none and only k3's is left.
    slope = math.exp(20) * (1 - math.exp(-0.5)) if slope is None else slope
    logprob = torch.tensor([-4.0], dtype=torch.float64, requires_grad=True)
    estimate = kl_estimate(logprob, logprob.detach() - difference, "k3-corrected", logprob.detach() - drift)
    (gradient,) = torch.autograd.grad(estimate.sum(), logprob)
    assert (float(estimate.detach()), float(gradient)) == pytest.approx((value, slope))


@given(difference=st.floats(-1e4, 1e4))
@settings(max_examples=100)
def test_k3_is_never_negative_and_always_finite(difference: float) -> None:
    for dtype in (torch.float32, torch.float64):
        value, slope = with_slope(difference, "k3", dtype)
        assert value >= 0
        assert math.isfinite(value)
        assert math.isfinite(slope)


def test_k3_keeps_its_digits_where_policy_and_reference_nearly_agree() -> None:
    # d²/2 for small d: exp(-d) - 1 + d computed as written would give 0 or noise.
    value = kl_estimate(torch.tensor([0.0], dtype=torch.float64), torch.tensor([-1e-7], dtype=torch.float64))
    assert float(value) == pytest.approx(5e-15, rel=1e-6, abs=0)


def exact_kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(first || second) of two distributions given as log-probabilities over one vocabulary."""
    return (first.exp() * (first - second)).sum()


@given(own=logits, other=logits)
@settings(max_examples=30)
def test_expected_over_the_policy_k1_and_k3_are_the_kl_divergence(own: list[float], other: list[float]) -> None:
    policy, reference = (torch.tensor(x, dtype=torch.float64).log_softmax(0) for x in (own, other))
    divergence = float(exact_kl(policy, reference))
    for estimator in ("k1", "k3", "k1+", "k3+", "k3-corrected"):
        expected = float((policy.exp() * kl_estimate(policy, reference, estimator)).sum())
        assert expected == pytest.approx(divergence, abs=1e-9), estimator


@pytest.mark.parametrize(
    ("estimator", "is_gradient_of"),
    [
        pytest.param("k1", "nothing", id="k1: zero, so as a loss it does not pull at all"),
        pytest.param("k2", "KL(policy || reference)", id="k2: that of the reverse KL"),
        pytest.param("k3", "KL(reference || policy)", id="k3: that of the forward KL"),
        pytest.param("k1+", "KL(policy || reference)", id="k1+: that of the reverse KL"),
        pytest.param("k3+", "KL(policy || reference)", id="k3+: that of the reverse KL"),
        pytest.param("k3-corrected", "KL(policy || reference)", id="k3-corrected: that of the reverse KL"),
    ],
)
@given(own=logits, other=logits)
@settings(max_examples=20)
def test_the_expected_gradient_of_an_estimate(
    estimator: Estimator, is_gradient_of: str, own: list[float], other: list[float]
) -> None:
    parameters = torch.tensor(own, dtype=torch.float64, requires_grad=True)
    policy = parameters.log_softmax(0)
    reference = torch.tensor(other, dtype=torch.float64).log_softmax(0)
    # Sampling tokens from the policy, exactly: each estimate as often as its token comes, the frequency a constant.
    sampled = (policy.detach().exp() * kl_estimate(policy, reference, estimator)).sum()
    target = {
        "nothing": policy.sum() * 0,
        "KL(policy || reference)": exact_kl(policy, reference),
        "KL(reference || policy)": exact_kl(reference, policy),
    }[is_gradient_of]
    (gradient,) = torch.autograd.grad(sampled, parameters, retain_graph=True)
    (expected,) = torch.autograd.grad(target, parameters)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-9)


@given(own=logits, sampler=logits, other=logits)
@settings(max_examples=20)
def test_expected_over_another_sampler_the_corrected_estimate_is_the_kl_and_its_gradient(
    own: list[float], sampler: list[float], other: list[float]
) -> None:
    parameters = torch.tensor(own, dtype=torch.float64, requires_grad=True)
    policy = parameters.log_softmax(0)
    sampling, reference = (torch.tensor(x, dtype=torch.float64).log_softmax(0) for x in (sampler, other))
    estimate = (sampling.exp() * kl_estimate(policy, reference, "k3-corrected", sampling)).sum()
    expected = exact_kl(policy, reference)
    torch.testing.assert_close(estimate, expected, rtol=1e-9, atol=1e-9)
    slopes = (torch.autograd.grad(x, parameters, retain_graph=True)[0] for x in (estimate, expected))
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-9)


def test_ratio_stats_say_how_far_the_policy_has_moved() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -0.5, -30.0], dtype=torch.float64, requires_grad=True)
    sampling = torch.tensor([-1.0, -1.0, -1.5, -1.0], dtype=torch.float64)
    metrics = {name: stat.value() for name, stat in ratio_stats(logprobs, sampling).items()}
    ratios = [1.0, math.exp(-1), math.e, math.exp(-20)]
    k3 = [0.0, math.exp(-1) - 1 + 1, math.e - 1 - 1, math.exp(-20) - 1 + 20]
    assert metrics == pytest.approx(
        {
            "ratio_mean": sum(ratios) / 4,
            "ratio_max": math.e,
            "ratio_capped": 1,
            "sampling_kl_k1": (1.0 - 1.0 + 29.0) / 4,
            "sampling_kl_k3": sum(k3) / 4,
            "entropy_estimate": 33.5 / 4,
        }
    )


@pytest.mark.parametrize(
    ("estimator", "claims"),
    [
        pytest.param("k1", {"gradient": "zero"}, id="k1: unbiased, no pull"),
        pytest.param("k2", {"value": "biased", "gradient": "reverse"}, id="k2: biased, pulls as the KL"),
        pytest.param("k3", {"gradient": "forward"}, id="k3: unbiased, pulls as the forward KL"),
        pytest.param("abs", {"value": "biased"}, id="abs: neither"),
        pytest.param("k1+", {"gradient": "reverse"}, id="k1+: both"),
        pytest.param("k3+", {"gradient": "reverse"}, id="k3+: both"),
        pytest.param("k3-corrected", {"gradient": "reverse"}, id="k3-corrected: both"),
    ],
)
def test_the_kit_finds_an_estimator_to_be_what_it_claims(estimator: Estimator, claims: dict) -> None:
    check_kl_estimator(lambda p, f: kl_estimate(p, f, estimator), **claims)


@pytest.mark.parametrize(
    ("estimator", "claims", "law"),
    [
        pytest.param(lambda p, f: 0.5 * (p - f) ** 2, {}, "expected_value", id="k2 is biased"),
        pytest.param(lambda p, f: p - f, {"gradient": "reverse"}, "expected_gradient", id="k1 pulls nowhere"),
        pytest.param(lambda p, f: (p - f).detach(), {"gradient": "reverse"}, "expected_gradient", id="a dead KL term"),
        pytest.param(lambda p, f: (p - f).exp() - 1 - (p - f), {}, "expected_value", id="k3 the wrong way round"),
        pytest.param(lambda p, f: (f - p).exp() - 1 - (f - p), {}, "finite_at_extremes", id="k3 without a cap"),
        pytest.param(lambda p, f: (f - p).exp() + (p - f), {"value": "biased"}, "zero_where_equal", id="1 too many"),
        pytest.param(lambda p, f: (p - f).sum(), {"value": "biased"}, "one_a_token", id="reduced"),
    ],
)
def test_a_broken_estimator_fails_by_the_name_of_the_law(estimator: Any, claims: dict, law: str) -> None:
    with pytest.raises(LossCheckError, match=rf"failed +{law}"):
        check_kl_estimator(estimator, **claims)
