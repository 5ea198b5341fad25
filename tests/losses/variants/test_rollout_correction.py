"""Rollout correction: the weight by hand, what it leaves alone, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook import Datum, get_loss, register_loss, unregister_loss
from lossbook.datums.errors import LossCheckError, LossConfigError, LossContractError, MissingInput, UnknownLossError
from lossbook.losses import off_policy_mask, rollout_correction, stats
from lossbook.losses.batch.seqs import Seqs
from lossbook.losses.testing import check_loss

from .rollouts import BASE, TEN, THREE, TWO, datum, evaluated


@pytest.mark.parametrize(
    ("name", "settings", "drift", "weights"),
    [
        pytest.param("token_truncate", {}, [0.0, TWO, TEN, -TWO], [1, 2, 2, 0.5], id="TIS: min(c, 2)"),
        pytest.param("token_truncate", {"cap": 5.0}, [TEN, THREE], [5, 3], id="TIS with another cap"),
        pytest.param("token_clamp", {}, [TEN, -THREE, TWO], [5, 0.5, 2], id="held within [1/2, 5]"),
        pytest.param("token_clamp", {"floor": 0.0}, [-THREE, TEN], [1 / 3, 5], id="held from above only"),
        pytest.param("token_clamp", {"floor": 0.9, "cap": 1.1}, [THREE, -THREE], [1.1, 0.9], id="other bounds"),
        pytest.param("sequence_clamp", {"cap": 8.0}, [TWO, TWO], [4, 4], id="the product within the bounds"),
        pytest.param("geometric_clamp", {}, [-TEN, -TEN], [0.5, 0.5], id="the geometric mean 1/10, from below"),
        pytest.param("token_uncapped", {}, [TEN, -TEN], [10, 0.1], id="c itself"),
        pytest.param("sequence_uncapped", {}, [TEN, TEN], [100, 100], id="the product itself"),
        pytest.param("token_mask", {"cap": 3.0}, [TWO, TEN, -TEN], [2, 0, 0.1], id="MIS: nothing above the cap"),
        pytest.param("token_band", {}, [THREE, TEN, -THREE, 0.0], [3, 0, 0, 1], id="IcePop: nothing outside [1/2, 5]"),
        pytest.param("token_band", {"low": 0.25, "high": 2.5}, [THREE, -THREE], [0, 1 / 3], id="another band"),
        pytest.param("token_reject", {}, [THREE, -THREE, 0.1], [0, 0, 1], id="rejected or left as it is"),
        pytest.param("sequence_truncate", {"cap": 5.0}, [TWO, TWO], [4, 4], id="of a response: the product"),
        pytest.param("sequence_truncate", {}, [TWO, TWO], [2, 2], id="the product, capped"),
        pytest.param("sequence_mask", {"cap": 3.0}, [TWO, TWO], [0, 0], id="the product, masked"),
        pytest.param("geometric_truncate", {}, [TWO, 3 * TWO], [2, 2], id="the geometric mean of 2 and 8 is 4, capped"),
        pytest.param("geometric_band", {"high": 9.0}, [TWO, 3 * TWO], [4, 4], id="the geometric mean itself"),
        pytest.param(
            "geometric_reject", {"low": 0.99, "high": 1.01}, [0.02, -0.01], [1, 1], id="SkyRL's narrow bounds"
        ),
        pytest.param("geometric_reject", {"low": 0.99, "high": 1.01}, [0.02, 0.01], [0, 0], id="just outside of them"),
        pytest.param(
            "token_truncate_normalized", {}, [TEN, 0.0, 0.0], [1.5, 0.75, 0.75], id="over the batch's mean 4/3"
        ),
        pytest.param("token_mask_normalized", {"cap": 1.0}, [TEN, TWO], [0, 0], id="all masked: no mean to divide by"),
        pytest.param("sequence_truncate", {"cap": 1e12}, [50.0, 1.0], [math.exp(20)] * 2, id="held at 20 nats"),
        pytest.param("token_truncate", {}, [-50.0], [math.exp(-20)], id="held at -20 nats"),
    ],
)
def test_a_loss_is_multiplied_by_a_weight_without_a_gradient(
    name: str, settings: dict[str, float], drift: list[float], weights: list[float]
) -> None:
    # Inputs are float32: near -64 a drift is off by 4e-6.
    value, gradients, _ = evaluated(get_loss(f"ppo+{name}", **settings), datum(drift))
    assert value == pytest.approx(sum(weights), rel=1e-5)
    assert gradients[0] == pytest.approx(weights, rel=1e-5)


@pytest.mark.parametrize(
    ("rule", "settings", "c", "weight"),
    [
        pytest.param("truncate", {"cap": 1.0}, 1.0, 1.0, id="truncate: at the cap it is the cap either way"),
        pytest.param("clamp", {"floor": 1.0, "cap": 1.0}, 1.0, 1.0, id="clamp: at both bounds it is unchanged"),
        pytest.param("mask", {"cap": 1.0}, 1.0, 1.0, id="mask: at the cap it stays"),
        pytest.param("band", {"low": 1.0, "high": 1.5}, 1.0, 1.0, id="band: at the lower bound it stays"),
        pytest.param("band", {"low": 0.5, "high": 1.0}, 1.0, 1.0, id="band: at the upper bound it stays"),
        pytest.param("reject", {"low": 1.0, "high": 1.0}, 1.0, 1.0, id="reject: at both bounds it stays"),
    ],
)
def test_exactly_at_a_bound_nothing_is_dropped(rule: str, settings: dict, c: float, weight: float) -> None:
    value, _, metrics = evaluated(get_loss(f"ppo+token_{rule}", **settings), datum([math.log(c)]))
    assert value == weight
    name = {"reject": "rejected", "mask": "correction_masked", "band": "correction_masked"}.get(
        rule, "correction_truncated"
    )
    assert metrics[name] == 0


def test_the_metrics_tell_how_far_rollout_and_trainer_are_apart() -> None:
    _, _, metrics = evaluated(get_loss("ppo+token_truncate"), datum([THREE, -TWO], weights=[1.0, 0.25]))
    assert metrics["correction_mean"] == pytest.approx((2 + 0.5) / 2, rel=1e-5)
    assert (metrics["correction_min"], metrics["correction_max"]) == pytest.approx((0.5, 2), rel=1e-5)
    assert metrics["correction_truncated"] == 0.5
    assert metrics["effective_sample_size"] == pytest.approx(2.5**2 / (2 * (4 + 0.25)), rel=1e-5)
    assert metrics["rollout_kl_k1"] == pytest.approx((-THREE + TWO) / 2, rel=1e-5)
    assert metrics["rollout_kl_k3"] == pytest.approx((3 - 1 - THREE + 0.5 - 1 + TWO) / 2, rel=1e-5)
    assert metrics["clip_fraction"] == 0  # ppo's own stay
    _, _, by_response = evaluated(get_loss("ppo+sequence_mask"), datum([THREE, 0.0]), datum([0.0]), datum([0.0]))
    assert by_response["correction_masked"] == pytest.approx(1 / 3, rel=1e-5)
    assert by_response["effective_sample_size"] == pytest.approx(2**2 / (3 * 2), rel=1e-5)  # weights 0, 1, 1
    _, _, held = evaluated(get_loss("ppo+token_clamp"), datum([THREE, -THREE, TEN]))
    assert held["correction_truncated"] == pytest.approx(2 / 3)
    _, _, whole = evaluated(get_loss("ppo+token_uncapped"), datum([THREE]))
    assert "correction_truncated" not in whole
    assert whole["correction_max"] == pytest.approx(3, rel=1e-5)
    _, _, rejected = evaluated(get_loss("ppo+token_reject"), datum([THREE, 0.0]))
    assert rejected["rejected"] == 0.5
    assert {"correction_mean", "effective_sample_size"}.isdisjoint(rejected)


def test_a_response_counts_its_own_tokens_whatever_their_weights() -> None:
    data = [datum([TWO, TWO], weights=[1.0, 0.5]), datum([-TWO, TEN], weights=[1.0, 0.0])]
    _, gradients, _ = evaluated(get_loss("ppo+sequence_truncate", cap=100.0), *data)
    assert gradients == [pytest.approx([4, 2], rel=1e-5), pytest.approx([0.5, 0], rel=1e-5)]


def test_a_value_of_weight_0_still_counts_in_the_denominator() -> None:
    value, _, _ = evaluated(get_loss("ppo+token_mask", reduction="token-mean"), datum([TEN, 0.0]))
    assert value == 0.5


def test_it_is_the_loss_where_rollout_and_trainer_agree() -> None:
    plain, slopes, _ = evaluated(get_loss("grpo", kl_coefficient=0.0), datum([0.0, 0.0]))
    for name in ("token_truncate", "sequence_mask", "geometric_band", "token_reject"):
        value, gradients, _ = evaluated(get_loss(f"grpo+{name}", kl_coefficient=0.0), datum([0.0, 0.0]))
        assert (value, gradients) == (plain, slopes)


def test_settings_of_rule_and_loss_are_settings_of_the_result() -> None:
    loss = rollout_correction(
        "ppo", level="sequence", rule="mask", cap=3.0, clip_low_threshold=0.7, reduction="token-mean"
    )
    assert repr(loss) == ("ppo+sequence_mask(reduction='token-mean', clip_low=0.7, clip_high=1.2, cap=3.0)")
    assert get_loss(loss, cap=4.0).settings == {"clip_low": 0.7, "clip_high": 1.2, "cap": 4.0}
    assert get_loss(loss, cap=4.0).reduction == "token-mean"
    assert rollout_correction(get_loss("ppo", clip_high=1.5)).settings["clip_high"] == 1.5
    with pytest.raises(LossConfigError, match=r"ppo\+token_truncate has no setting 'caps'. Did you mean 'cap'"):
        get_loss("ppo+token_truncate", caps=3.0)
    with pytest.raises(LossConfigError, match=r"cap=0: input should be greater than 0"):
        get_loss("ppo+token_truncate", cap=0)
    with pytest.raises(LossConfigError, match=r"ppo\+token_band has no setting 'cap'"):
        get_loss("ppo+token_band", cap=3.0)


def test_what_is_coupled_is_what_the_weight_needs() -> None:
    assert get_loss("ppo+token_truncate").couples == "token"
    assert get_loss("ppo+geometric_reject").couples == "datum"
    assert get_loss("ppo+token_truncate_normalized").couples == "batch"
    assert get_loss("ppo+off_policy_mask", threshold=1.0).couples == "datum"


def test_the_engines_logprobs_are_needed_and_named() -> None:
    bare = datum([0.0])
    without = Datum(bare.model_input, {k: v for k, v in bare.loss_fn_inputs.items() if k != "rollout_logprobs"})
    with pytest.raises(MissingInput, match=r"^ppo\+token_truncate reads 'rollout_logprobs'"):
        get_loss("ppo+token_truncate")([without], [torch.tensor([BASE])])


def test_a_loss_without_a_ratio_gets_the_trainers_logprobs_as_an_input() -> None:
    loss = get_loss("reinforce+token_truncate")
    assert [wanted.name for wanted in loss.spec.inputs] == ["advantages", "sampling_logprobs", "rollout_logprobs"]
    assert evaluated(loss, datum([-TWO]))[1][0] == pytest.approx([0.5], rel=1e-5)


@pytest.mark.parametrize("advantage", [0.0, 0.5])
def test_only_what_is_punished_is_dropped(advantage: float) -> None:
    _, gradients, metrics = evaluated(off_policy_mask("ppo", threshold=0.5), datum([-1.0, -0.4], advantage))
    assert gradients == [[-advantage] * 2]
    assert (metrics["off_policy_masked"], metrics["off_policy_responses"]) == (0, 1)


def test_a_response_of_one_token_is_its_own_mean() -> None:
    for name in ("ppo+geometric_band", "ppo+sequence_band", "ppo+token_band"):
        assert evaluated(get_loss(name), datum([TWO]))[0] == pytest.approx(2, rel=1e-5)
        assert evaluated(get_loss(f"{name}_normalized"), datum([TWO]))[0] == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    ("advantage", "drift", "kept"),
    [
        pytest.param(-1.0, [-1.0, -0.4], 0.0, id="punished, 0.7 nats a token away: dropped"),
        pytest.param(-1.0, [-1.0, 0.0], 1.0, id="punished, exactly at the threshold: kept"),
        pytest.param(+1.0, [-1.0, -0.4], 1.0, id="rewarded: kept"),
        pytest.param(-1.0, [1.0, 0.4], 1.0, id="likelier under the policy: kept"),
    ],
)
def test_a_punished_response_that_the_policy_has_left_is_dropped(advantage: float, drift: list, kept: float) -> None:
    loss = off_policy_mask("ppo", threshold=0.5)
    value, gradients, metrics = evaluated(loss, datum(drift, advantage))
    assert value == -2 * advantage * kept
    assert gradients == [[-advantage * kept] * 2]
    assert metrics["off_policy_masked"] == 1 - kept


def test_the_mask_measures_against_the_sampler_without_the_engines_logprobs() -> None:
    data = datum([0.0, 0.0], sampling_logprobs=[BASE + 1, BASE + 1])
    bare = Datum(data.model_input, {k: v for k, v in data.loss_fn_inputs.items() if k != "rollout_logprobs"})
    loss = get_loss("importance_sampling+off_policy_mask", threshold=0.9)
    assert evaluated(loss, bare)[0] == 0
    assert evaluated(loss, data)[0] != 0
    with pytest.raises(LossConfigError, match="needs the setting 'threshold'"):
        get_loss("ppo+off_policy_mask")


def test_corrections_that_do_different_things_go_together() -> None:
    loss = get_loss("ppo+token_truncate+geometric_reject+off_policy_mask", threshold=1.0, low=0.9, high=1.1, cap=1.5)
    assert loss.settings == {"clip_low": 0.8, "clip_high": 1.2, "cap": 1.5, "low": 0.9, "high": 1.1, "threshold": 1.0}
    drift = [TWO, 0.0 - TWO]  # geometric mean 1: not rejected; 2 is truncated
    assert evaluated(loss, datum(drift))[1][0] == pytest.approx([1.5, 0.5], rel=1e-5)
    needed = get_loss("ppo+off_policy_mask+token_truncate", threshold=1.0)
    assert {one.name: one.required for one in needed.spec.inputs}["rollout_logprobs"]


def test_a_response_is_kept_by_its_geometric_mean_and_its_tokens_keep_their_own_weights() -> None:
    # OpenRLHF's and NeMo-RL's seq-mask-tis. Geometric means: sqrt(4 / 4) = 1, and sqrt(1.01^2) = 1.01.
    loss = get_loss("ppo+token_uncapped+geometric_reject", low=0.999, high=1.002)
    _, gradients, metrics = evaluated(loss, datum([2 * TWO, -2 * TWO]), datum([math.log(1.01)] * 2))
    assert gradients == [pytest.approx([4, 0.25], rel=1e-4), [0, 0]]
    assert metrics["rejected"] == 0.5
    assert metrics["correction_max"] == pytest.approx(4, rel=1e-4)


def own(logprobs: Tensor, rollout_logprobs: Tensor) -> Tensor:
    return rollout_logprobs - logprobs


def response(logprobs: Tensor, sampling_logprobs: Tensor, advantages: Tensor, seqs: Seqs) -> Tensor:
    """A loss of one value a response."""
    return -seqs.mean(advantages) * (seqs.mean(logprobs - sampling_logprobs)).exp()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: rollout_correction("ppo", level="word"), LossConfigError, "levels are token, sequence, geometric"),
        (
            lambda: rollout_correction("ppo", rule="clip"),
            LossConfigError,
            "rules are truncate, clamp, uncapped, mask, band, reject",
        ),
        (
            lambda: get_loss("ppo+token_clip"),
            LossConfigError,
            "'token_clip' is not a correction. .* with the levels token, sequence, geometric and the rules truncate, clamp",
        ),
        (lambda: get_loss("ppo+"), LossConfigError, "'' is not a correction"),
        (lambda: get_loss("pro+token_mask"), UnknownLossError, "no loss is registered as 'pro'"),
        (lambda: rollout_correction(0.5 * get_loss("ppo")), LossContractError, "takes one loss, not a mixture"),
        (lambda: rollout_correction("dpo"), LossContractError, "weighs a policy loss per token or datum"),
        (lambda: rollout_correction("info_nce"), LossContractError, "weighs a policy loss per token or datum"),
        (lambda: rollout_correction(lambda data, logprobs: 0), LossContractError, "weighs a policy loss per token"),
        (lambda: rollout_correction(own), LossContractError, "reads rollout_logprobs itself"),
        (lambda: get_loss("ppo+token_truncate+sequence_mask"), LossContractError, "has a setting 'cap' of its own"),
        (lambda: get_loss("ppo+token_reject+sequence_band"), LossContractError, "has a setting 'low' of its own"),
        (lambda: get_loss("ppo+token_truncate+token_band"), LossContractError, "weighed by token_truncate already"),
        (
            lambda: get_loss("ppo+token_clamp", floor=3.0, cap=2.0),
            LossConfigError,
            "floor=3 is above cap=2, so every weight would be the cap",
        ),
        (
            lambda: get_loss("ppo+token_band", low=3.0, high=2.0),
            LossConfigError,
            "low=3 is above high=2, so every weight would be 0",
        ),
    ],
)
def test_what_cannot_be_right_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.fixture
def registered() -> Any:
    """A loss per response, and one under an id whose ratio is against the rollout."""
    register_loss("of_responses", per="datum")(response)
    yield
    unregister_loss("of_responses")


def test_a_loss_of_one_value_a_response_takes_a_weight_of_responses(registered: Any) -> None:
    with pytest.raises(LossContractError, match="choose the level 'sequence' or 'geometric'"):
        get_loss("of_responses+token_truncate")
    loss = get_loss("of_responses+geometric_truncate", cap=3.0, reduction="sum")
    assert evaluated(loss, datum([TWO, 0.0]))[0] == pytest.approx(math.sqrt(2), rel=1e-5)
    dropped = get_loss("of_responses+off_policy_mask", threshold=0.1, reduction="sum")
    assert evaluated(dropped, datum([-TWO, 0.0]))[0] == 0
    for one in (loss, dropped):
        check_loss(one, max_examples=3, checks=["law_micro_batches", "masked_positions", "gradient", "live_config"])


@pytest.mark.parametrize("name", ["vespo", "dppo", "rollout_is"])
def test_a_loss_against_the_rollout_is_corrected_already(name: str) -> None:
    with pytest.raises(LossContractError, match=f"{name} is corrected already.*would count twice"):
        get_loss(f"{name}+token_truncate")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("importance_sampling+geometric_band", {}),
        ("reinforce+token_truncate_normalized", {}),
        ("reinforce+off_policy_mask", {"threshold": 0.5}),
        pytest.param("ppo+token_truncate", {}, marks=pytest.mark.slow),
        pytest.param("grpo+token_mask", {}, marks=pytest.mark.slow),
        pytest.param("grpo+token_clamp+geometric_reject", {}, marks=pytest.mark.slow),
        pytest.param("gspo_token+sequence_truncate", {}, marks=pytest.mark.slow),
        pytest.param("ppo+sequence_reject", {"reduction": "seq-mean-token-mean"}, marks=pytest.mark.slow),
        pytest.param("ppo+token_mask+off_policy_mask", {"threshold": 0.5}, marks=pytest.mark.slow),
    ],
)
def test_a_corrected_loss_keeps_every_law(name: str, settings: dict[str, Any]) -> None:
    check_loss(name, max_examples=2, **settings)


def test_a_mixture_may_hold_a_corrected_loss_and_the_loss_itself() -> None:
    mixture = get_loss("ppo+token_truncate") + 0.5 * get_loss("ppo")
    value, gradients, metrics = evaluated(mixture, datum([-TWO]))
    assert (value, gradients) == (pytest.approx(1.0, rel=1e-5), [pytest.approx([1.0], rel=1e-5)])
    assert metrics["ppo+token_truncate/correction_mean"] == pytest.approx(0.5, rel=1e-5)


def test_a_failing_check_prints_how_to_make_the_corrected_loss() -> None:
    def leaks(logprobs: Tensor, sampling_logprobs: Tensor, advantages: Tensor) -> Any:
        return -(logprobs - sampling_logprobs) * advantages, {"n": stats.mean(logprobs.new_ones(len(logprobs) + 1))}

    register_loss("leaks")(leaks)
    try:
        with pytest.raises(
            LossCheckError, match=r"loss = get_loss\(rollout_correction\('leaks', level='token', rule='mask'\)"
        ):
            check_loss("leaks+token_mask", cap=3.0, max_examples=5, checks=["metrics_law"])
    finally:
        unregister_loss("leaks")
