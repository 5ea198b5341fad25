"""Rejection by a divergence: what is kept by hand, at which level, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lossbook import Datum, get_loss, register_loss, unregister_loss
from lossbook.datums.errors import LossConfigError, LossContractError
from lossbook.losses import rollout_correction, rollout_rejection
from lossbook.losses.testing import check_loss

from .rollouts import BASE, TEN, THREE, TWO, datum, evaluated

#: k3 = exp(x) - 1 - x of x = log 2, -log 2 and log 3.
K3_TWO, K3_HALF, K3_THREE = 1 - TWO, TWO - 0.5, 2 - THREE


@pytest.mark.parametrize(
    ("mode", "bounds", "drifts", "kept"),
    [
        # k1 = -x, of either sign
        ("token_k1", (-0.5, 0.5), [[0.6, -0.6, 0.4, -0.4]], [[0, 0, 1, 1]]),
        ("token_k1", (0.1, 0.5), [[-0.6, -0.4, 0.0, 0.4]], [[0, 1, 0, 0]]),
        ("sum_k1", (-0.5, 0.5), [[0.6, -0.6], [0.3, 0.3], [-0.3, -0.3]], [[1, 1], [0, 0], [0, 0]]),
        ("mean_k1", (-0.25, 0.35), [[0.4, 0.2], [0.4, 0.0], [-0.4, -0.2]], [[0, 0], [1, 1], [1, 1]]),
        ("max_k1", (-0.5, 0.5), [[0.6, 0.0], [-0.6, 0.0], [0.4, -0.4]], [[0, 0], [0, 0], [1, 1]]),
        # k2 = x²/2: 0.02, 0.08, 0.5
        ("token_k2", 0.1, [[0.2, -0.4, 1.0, -1.0]], [[1, 1, 0, 0]]),
        ("sum_k2", 0.11, [[0.2, 0.4], [0.4, 0.4], [0.2, -0.4]], [[1, 1], [0, 0], [1, 1]]),
        ("mean_k2", 0.06, [[0.2, 0.4], [0.4, 0.4]], [[1, 1], [0, 0]]),
        ("max_k2", 0.1, [[0.2, 1.0, 0.2], [0.4, 0.4, 0.4]], [[0, 0, 0], [1, 1, 1]]),
        # k3: .307 of log 2, .193 of -log 2, .901 of log 3; their mean is .25
        ("token_k3", 0.25, [[TWO, -TWO, 0.0]], [[0, 1, 1]]),
        ("sum_k3", 0.49, [[TWO, -TWO], [-TWO, -TWO]], [[0, 0], [1, 1]]),
        ("mean_k3", 0.26, [[TWO, -TWO], [TWO, TWO]], [[1, 1], [0, 0]]),
        ("max_k3", 0.5, [[THREE, 0.0], [TWO, TWO]], [[0, 0], [1, 1]]),
        # beyond 20 nats all are alike
        ("token_k1", (-20.0, 20.0), [[-30.0, 30.0]], [[1, 1]]),
        ("token_k2", 200.0, [[-30.0, 30.0]], [[1, 1]]),
    ],
)
def test_what_is_kept_by_hand(mode: str, bounds: Any, drifts: list[list[float]], kept: list[list[float]]) -> None:
    names = (
        {f"{mode}_high": bounds}
        if isinstance(bounds, float)
        else dict(zip((f"{mode}_low", f"{mode}_high"), bounds, strict=False))
    )
    loss = get_loss(f"ppo+reject_{mode}", **names)
    value, gradients, metrics = evaluated(loss, *[datum(one) for one in drifts])
    assert gradients == kept
    assert value == sum(map(sum, kept))
    units = [x for row in kept for x in row] if mode.startswith("token") else [row[0] for row in kept]
    assert metrics[f"rejected_{mode}"] == pytest.approx(1 - sum(units) / len(units))


def probable(*tokens: tuple[float, float]) -> Datum:
    """Tokens of these probabilities: (in the engine, under the trainer)."""
    return datum([math.log(now / before) for before, now in tokens], trainer=[math.log(now) for _, now in tokens])


@pytest.mark.parametrize(
    ("mode", "high", "kept"),
    [
        # tv: .25, .05, .1; binary KL of (.25, .5): .25 log .5 + .75 log 1.5 = .1308; of (.9, .95): .9 log(.9/.95) +
        # .1 log 2 = .0207; of (.5, .4): .5 log 1.25 + .5 log(.5/.6) = .0204
        ("token_tv", 0.2, [[0, 1], [1]]),
        ("token_tv", 0.06, [[0, 1], [0]]),
        ("mean_tv", 0.12, [[0, 0], [1]]),
        ("sum_tv", 0.31, [[1, 1], [1]]),
        ("max_tv", 0.2, [[0, 0], [1]]),
        ("token_binary_kl", 0.1307, [[0, 1], [1]]),
        ("token_binary_kl", 0.1309, [[1, 1], [1]]),
        ("token_binary_kl", 0.0206, [[0, 0], [1]]),
        ("mean_binary_kl", 0.0757, [[0, 0], [1]]),
        ("mean_binary_kl", 0.0759, [[1, 1], [1]]),
        ("sum_binary_kl", 0.1514, [[0, 0], [1]]),
    ],
)
def test_divergences_of_probabilities_by_hand(mode: str, high: float, kept: list[list[float]]) -> None:
    loss = get_loss(f"reinforce+reject_{mode}", **{f"{mode}_high": high})
    assert evaluated(loss, probable((0.25, 0.5), (0.9, 0.95)), probable((0.5, 0.4)))[1] == kept


def test_metrics_are_of_what_is_bounded() -> None:
    data = [datum([TWO, -TWO]), datum([THREE, 0.0])]
    _, _, mean = evaluated(get_loss("ppo+reject_mean_k3", mean_k3_high=0.3), *data)
    assert mean["mean_k3_average"] == pytest.approx((0.25 + K3_THREE / 2) / 2, rel=1e-4)
    assert mean["mean_k3_largest"] == pytest.approx(K3_THREE / 2, rel=1e-4)
    assert mean["rollout_kl_k1"] == pytest.approx(-THREE / 4, rel=1e-4)
    assert mean["rollout_kl_k3"] == pytest.approx((K3_TWO + K3_HALF + K3_THREE) / 4, rel=1e-4)
    _, _, largest = evaluated(get_loss("ppo+reject_max_k3", max_k3_high=0.5), *data)
    assert largest["max_k3_largest"] == pytest.approx(K3_THREE, rel=1e-4)
    assert largest["max_k3_average"] == pytest.approx((K3_TWO + K3_HALF + K3_THREE) / 4, rel=1e-4)
    assert largest["rejected_max_k3"] == 0.5


@pytest.mark.parametrize("mode", ["token_k1", "token_k2", "token_k3", "sum_tv", "max_binary_kl", "mean_k3"])
def test_exactly_at_a_bound_and_where_nothing_differs_all_is_kept(mode: str) -> None:
    bounds = {f"{mode}_high": 0.0, **({f"{mode}_low": 0.0} if mode.endswith("k1") else {})}
    loss = get_loss(f"reinforce+reject_{mode}", **bounds)
    data = datum([0.0, 0.0, 0.0], trainer=[-1e-9, -0.3, -20.0])
    assert evaluated(loss, data)[1] == [[1, 1, 1]]


def test_a_token_that_is_nearly_certain_has_a_finite_divergence() -> None:
    # The complement's probability is held at 1e-6: 0.5 log 0.5 + 0.5 log(0.5 / 1e-6) = 6.21
    loss = get_loss("reinforce+reject_token_binary_kl", token_binary_kl_high=6.3)
    _, gradients, metrics = evaluated(loss, datum([math.log(2)], trainer=[0.0]))
    assert gradients == [[1]]
    assert metrics["token_binary_kl_largest"] == pytest.approx(0.5 * math.log(0.5) + 0.5 * math.log(0.5e6), rel=1e-5)


def test_masked_tokens_do_not_count() -> None:
    data = datum([0.0, TEN], weights=[1.0, 0.0])
    assert evaluated(get_loss("ppo+reject_max_k3", max_k3_high=0.1), data)[1] == [[1, 0]]
    assert evaluated(get_loss("ppo+reject_mean_k1", mean_k1_low=-0.1, mean_k1_high=0.1), data)[1] == [[1, 0]]


def test_the_function_and_the_id_make_the_same_loss() -> None:
    loss = rollout_rejection("ppo", "k1", over="mean", low=-0.1, high=0.2, clip_high=1.5)
    same = get_loss("ppo+reject_mean_k1", mean_k1_low=-0.1, mean_k1_high=0.2, clip_high=1.5)
    assert repr(loss) == repr(same)
    assert loss.settings == {"clip_low": 0.8, "clip_high": 1.5, "mean_k1_low": -0.1, "mean_k1_high": 0.2}
    assert (loss.couples, get_loss("ppo+reject_token_k2", token_k2_high=1.0).couples) == ("datum", "token")
    assert rollout_rejection("ppo", high=0.1).name == "ppo+reject_token_k3"


def test_rejections_go_together_and_with_one_weight() -> None:
    loss = get_loss(
        "ppo+token_band+reject_mean_k3+reject_token_k1",
        low=0.1,
        high=2.5,
        mean_k3_high=0.4,
        token_k1_low=-1.0,
        token_k1_high=0.5,
    )
    # First: mean k3 .25, kept; the band keeps both; k1 = log 2 is above .5. Second: mean k3 .901 / 2 is above .4.
    _, gradients, metrics = evaluated(loss, datum([TWO, -TWO]), datum([THREE, 0.0]))
    assert gradients == [pytest.approx([2, 0], rel=1e-5), [0, 0]]
    assert (metrics["rejected_mean_k3"], metrics["rejected_token_k1"]) == (0.5, 0.5)
    other = rollout_correction(rollout_rejection("ppo", "k3", over="mean", high=0.4), cap=1.5)
    assert evaluated(other, datum([TWO, -TWO]))[1] == [pytest.approx([1.5, 0.5], rel=1e-5)]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: rollout_rejection("ppo", "k4"), LossConfigError, "divergences are k1, k2, k3, binary_kl, tv"),
        (lambda: rollout_rejection("ppo", over="median"), LossConfigError, "over is token, sum, mean, max"),
        (
            lambda: rollout_rejection("ppo", "k3", low=0.1, high=1.0),
            LossConfigError,
            "only k1 has a lower bound, not k3",
        ),
        (lambda: rollout_rejection("ppo", "k3"), LossConfigError, "needs the setting 'token_k3_high'"),
        (lambda: rollout_rejection("ppo", "k1", high=1.0), LossConfigError, "needs the setting 'token_k1_low'"),
        (lambda: rollout_rejection("ppo", "k3", high=-1.0), LossConfigError, "token_k3_high=-1.0: input should be"),
        (
            lambda: rollout_rejection("ppo", "k1", low=0.5, high=0.25),
            LossConfigError,
            r"token_k1_low=0.5 is above token_k1_high=0.25, so all would be rejected",
        ),
        (lambda: get_loss("ppo+reject_k3"), LossConfigError, "Did you mean 'reject_.*_k3'"),
        (lambda: rollout_rejection("vespo", high=0.1), LossContractError, "vespo is corrected already"),
        (
            lambda: get_loss("ppo+reject_mean_k3+reject_mean_k3", mean_k3_high=1.0),
            LossContractError,
            "reject_mean_k3 is there twice",
        ),
        (lambda: rollout_rejection("dpo", high=0.1), LossContractError, "weighs a policy loss per token or datum"),
    ],
)
def test_what_cannot_be_right_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_loss_of_one_value_a_response_is_rejected_by_responses() -> None:
    register_loss("of_whole_responses", per="datum")(
        lambda logprobs, advantages, seqs: -seqs.mean(advantages) * seqs.mean(logprobs)
    )
    try:
        with pytest.raises(LossContractError, match="reject over 'sum', 'mean' or 'max'"):
            rollout_rejection("of_whole_responses", high=0.1)
        loss = rollout_rejection("of_whole_responses", over="max", high=0.5, reduction="sum")
        assert evaluated(loss, datum([THREE, 0.0]), datum([TWO]))[1] == [[0, 0], [1]]
    finally:
        unregister_loss("of_whole_responses")


def test_k_targets_per_position_are_rejected_slot_by_slot() -> None:
    data = Datum(
        [0, 1],
        {
            "target_tokens": [[0, 1], [2, 3]],
            "sampling_logprobs": [[BASE, BASE], [BASE, BASE]],
            "rollout_logprobs": [[BASE - TWO, BASE + TWO], [BASE, BASE - TEN]],
            "advantages": [[-1.0, -1.0], [-1.0, -1.0]],
        },
    )
    leaf = torch.full((2, 2), BASE, dtype=torch.float64, requires_grad=True)
    value, _ = get_loss("ppo+reject_token_k3", token_k3_high=0.25)([data], [leaf])
    assert torch.autograd.grad(value, leaf)[0].tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param("importance_sampling+reject_mean_k3", {"mean_k3_high": 0.5}, marks=pytest.mark.slow),
        pytest.param("reinforce+reject_token_binary_kl", {"token_binary_kl_high": 0.1}, marks=pytest.mark.slow),
        pytest.param("ppo+reject_max_k1", {"max_k1_low": -1.0, "max_k1_high": 1.0}, marks=pytest.mark.slow),
        pytest.param("gspo+reject_sum_tv", {"sum_tv_high": 0.5}, marks=pytest.mark.slow),
        pytest.param(
            "ppo+token_truncate+reject_mean_k2+off_policy_mask",
            {"mean_k2_high": 0.5, "threshold": 0.5},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_loss_with_rejections_keeps_every_law(name: str, settings: dict[str, Any]) -> None:
    check_loss(name, max_examples=2, **settings)
