"""What is particular to the policy losses: the clip, its ties, the KL term, and how they meet one another."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import get_loss
from lossbook.datums.errors import MissingInput

from ..cases import assert_rows_equal, datum, evaluated, one_token

POLICY_LOSSES = ("importance_sampling", "ppo", "grpo")

log_ratios = st.floats(-6, 3, width=32)
advantages = st.floats(-3, 3, width=32)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        pytest.param(1.0, +1.0, -1.0, -1.0, id="on policy, rewarded: the plain policy gradient"),
        pytest.param(1.0, -2.0, +2.0, +2.0, id="on policy, punished: the plain policy gradient"),
        pytest.param(1.1, +1.0, -1.1, -1.1, id="risen within the bounds, rewarded: pushed on by the ratio"),
        pytest.param(1.5, +1.0, -1.2, 0.0, id="risen past the bound, rewarded: no further push"),
        pytest.param(1.5, -1.0, +1.5, +1.5, id="risen past the bound, punished: pulled back in full"),
        pytest.param(0.5, -1.0, +0.8, 0.0, id="fallen past the bound, punished: no further push"),
        pytest.param(0.5, +1.0, -0.5, -0.5, id="fallen past the bound, rewarded: pulled back in full"),
        pytest.param(1.5, 0.0, 0.0, 0.0, id="no advantage: nothing to push, wherever the ratio is"),
    ],
)
def test_ppo_pushes_only_until_the_bound(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    value, slope, metrics = one_token("ppo", ratio, advantage)
    assert (value, slope) == pytest.approx((loss, gradient))
    assert metrics["clip_fraction"] == (gradient == 0 and advantage != 0)


@pytest.mark.parametrize("advantage", [1.0, -1.0], ids=["rewarded", "punished"])
@pytest.mark.parametrize(
    ("log_ratio", "config"),
    [
        pytest.param(0.0, {"clip_high": 1.0}, id="at the upper bound"),
        pytest.param(0.0, {"clip_low": 1.0}, id="at the lower bound"),
    ],
)
def test_exactly_at_a_bound_ppo_keeps_the_whole_gradient(
    log_ratio: float, config: dict[str, float], advantage: float
) -> None:
    # A minimum of two equal branches would pass on one half.
    value, slope, metrics = one_token("ppo", math.exp(log_ratio), advantage, **config)
    assert (value, slope) == (-advantage, -advantage)
    assert metrics["clip_fraction"] == 0


@pytest.mark.parametrize("name", ["clip_low_threshold", "clip_high_threshold"])
def test_ppo_takes_the_bounds_of_single_tokens(name: str) -> None:
    # Ratios 0.9 and 1.1 lie within 0.8 and 1.2; the thresholds put the bounds at 0.95 and 1.05 for one token only.
    side = 0.9 if name == "clip_low_threshold" else 1.1
    advantage = -1.0 if side < 1 else 1.0
    bounds = [0.95, 0.5] if side < 1 else [1.05, 3.0]
    data = [datum(2, sampling_logprobs=[-4.0] * 2, advantages=[advantage] * 2, **{name: bounds})]
    row = [math.log(side) - 4.0] * 2
    value, gradients, metrics = evaluated(get_loss("ppo"), data, [row])
    assert value == pytest.approx(-advantage * (bounds[0] + side))
    assert_rows_equal(gradients, [[0.0, -advantage * side]], 1e-7)
    assert metrics["clip_fraction"] == 0.5


@given(log_ratio=log_ratios, advantage=advantages)
@settings(max_examples=50)
def test_ppo_without_bounds_is_importance_sampling(log_ratio: float, advantage: float) -> None:
    open_bounds = one_token("ppo", math.exp(log_ratio), advantage, clip_low=0.0, clip_high=1e30)
    assert open_bounds[:2] == one_token("importance_sampling", math.exp(log_ratio), advantage)[:2]


@pytest.mark.parametrize("name", POLICY_LOSSES)
@given(rows=st.lists(st.tuples(st.floats(-8, 0, width=32), advantages), min_size=1, max_size=5))
@settings(max_examples=20)
def test_on_policy_the_gradient_is_that_of_reinforce(name: str, rows: list[tuple[float, float]]) -> None:
    logprobs, given_advantages = zip(*rows, strict=True)
    data = [datum(len(rows), sampling_logprobs=logprobs, ref_logprobs=logprobs, advantages=given_advantages)]
    value, gradients, metrics = evaluated(get_loss(name, reduction="sum"), data, [logprobs])
    assert value == pytest.approx(-sum(given_advantages), abs=1e-9)
    assert_rows_equal(gradients, [[-a for a in given_advantages]], 1e-12)
    assert (metrics["ratio_mean"], metrics["ratio_max"], metrics["sampling_kl_k3"]) == (1, 1, 0)


@given(ratio=st.floats(0.01, 20), advantage=advantages)
@settings(max_examples=50)
def test_ppo_is_never_less_than_importance_sampling(ratio: float, advantage: float) -> None:
    assert one_token("ppo", ratio, advantage)[0] >= one_token("importance_sampling", ratio, advantage)[0]


@pytest.mark.parametrize(
    ("estimator", "divergence", "slope"),
    [
        pytest.param("k1", 0.5, 1.0, id="k1: the log-ratio, whose gradient ignores the reference"),
        pytest.param("k2", 0.125, 0.5, id="k2: half its square, pulled back by the distance"),
        pytest.param("k3", math.exp(-0.5) - 0.5, 1 - math.exp(-0.5), id="k3: never negative"),
    ],
)
def test_grpo_adds_the_chosen_kl_estimate(estimator: str, divergence: float, slope: float) -> None:
    # On policy with advantage 0 only the KL term is left; half a nat above the reference.
    loss = get_loss("grpo", kl_coefficient=0.25, kl_estimator=estimator, reduction="sum")
    data = [datum(1, sampling_logprobs=[-1.0], ref_logprobs=[-1.5], advantages=[0.0])]
    value, gradients, metrics = evaluated(loss, data, [[-1.0]])
    assert value == pytest.approx(0.25 * divergence)
    assert_rows_equal(gradients, [[0.25 * slope]], 1e-12)
    assert metrics["ref_kl"] == pytest.approx(divergence)


def test_grpo_with_a_kl_term_asks_for_the_reference() -> None:
    data = [datum(2, sampling_logprobs=[-1.0] * 2, advantages=[1.0] * 2, weights=[1, 1])] * 2
    with pytest.raises(MissingInput) as caught:
        get_loss("grpo").check(data)
    assert str(caught.value) == (
        "grpo with kl_coefficient=0.001 reads 'ref_logprobs', which datum 0 of 2 does not carry. Add it, or set "
        "kl_coefficient=0"
    )


def test_grpo_without_a_kl_term_needs_no_reference_and_is_ppo() -> None:
    data = [datum(2, sampling_logprobs=[-1.0, -2.0], advantages=[1.0, -1.0], weights=[1, 1])]
    rows = [[-0.5, -2.1]]
    grpo, slopes, metrics = evaluated(get_loss("grpo", kl_coefficient=0.0), data, rows)
    ppo, expected, _ = evaluated(get_loss("ppo", reduction="token-mean"), data, rows)
    assert grpo == ppo
    assert_rows_equal(slopes, expected, 0)
    assert math.isnan(metrics["ref_kl"])  # known by name, measured nowhere


@pytest.mark.parametrize("name", POLICY_LOSSES)
@pytest.mark.parametrize("difference", [20.0, 88.0, 89.0, 1e4], ids=lambda nats: f"{nats:g} nats apart")
@pytest.mark.parametrize("sign", [1, -1], ids=["risen", "fallen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_ratio_overflows_in_value_or_gradient(name: str, difference: float, sign: int, dtype: torch.dtype) -> None:
    far, near = [-difference], [0.0]
    logprobs, sampling = (near, far) if sign > 0 else (far, near)
    data = [datum(1, sampling_logprobs=sampling, ref_logprobs=sampling, advantages=[-1.0])]
    leaf = torch.tensor(logprobs, dtype=dtype, requires_grad=True)
    value, metrics = get_loss(name, reduction="sum")(data, [leaf])
    (gradient,) = torch.autograd.grad(value, [leaf])
    assert math.isfinite(value.detach())
    assert torch.isfinite(gradient).all()
    assert metrics["ratio_capped"] == (difference > 20)


@pytest.mark.parametrize(
    ("log_ratio", "loss", "gradient", "capped"),
    [
        pytest.param(2.0, -math.exp(2), -math.exp(2), 0, id="exactly at the cap: still a gradient"),
        pytest.param(2.5, -math.exp(2), 0.0, 1, id="beyond the cap: held there, without a gradient, and counted"),
        pytest.param(-2.5, -math.exp(-2), 0.0, 1, id="below the cap: held there, without a gradient, and counted"),
    ],
)
def test_importance_sampling_holds_the_log_ratio_within_its_cap(
    log_ratio: float, loss: float, gradient: float, capped: int
) -> None:
    data = [datum(1, sampling_logprobs=[-4.0], advantages=[1.0])]
    value, gradients, metrics = evaluated(get_loss("importance_sampling", ratio_log_cap=2.0), data, [[log_ratio - 4.0]])
    assert (value, float(gradients[0])) == pytest.approx((loss, gradient))
    assert metrics["ratio_capped"] == capped


def test_a_token_of_advantage_zero_counts_in_the_denominator() -> None:
    data = [datum(2, sampling_logprobs=[-1.0] * 2, advantages=[1.0, 0.0], weights=[1, 1])]
    value, _, _ = evaluated(get_loss("ppo", reduction="token-mean"), data, [[-1.0] * 2])
    assert value == -0.5
