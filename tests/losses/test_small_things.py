"""What is easily done with losses by hand: arithmetic, settings from NumPy, ids, values put into a datum, writes in place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lossbook import Datum, get_loss, list_presets, register_loss, unregister_loss
from lossbook.datums.errors import (
    DtypeError,
    DuplicateLossError,
    LabelError,
    LossConfigError,
    LossContractError,
)
from lossbook.losses import kl_estimate, ratio_stats, safe_ratio, stats

from .cases import datum, evaluated, loss_of, rollout

CROSS_ENTROPY, PPO = get_loss("cross_entropy"), get_loss("ppo")


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("info_nce", {"num_extra_negatives": np.int64(2)}, {"num_extra_negatives": 2}),
        ("ipo", {"length_normalized": np.bool_(False)}, {"length_normalized": False}),
        ("ppo", {"clip_low": np.float32(0.75)}, {"clip_low": 0.75}),
        ("gkd", {"tail": np.str_("drop")}, {"tail": "drop"}),
        ("clip_cov", {"seed": np.uint8(7)}, {"seed": 7}),
    ],
)
def test_numpys_numbers_are_settings(name: str, given: dict[str, Any], kept: dict[str, Any]) -> None:
    settings = get_loss(name, **given).settings
    assert {key: settings[key] for key in kept} == kept
    assert all(type(settings[key]) is type(value) for key, value in kept.items())
    assert get_loss("dr_grpo", norm_length=np.int32(8)).norm_length == 8


def test_a_parameter_is_neither_a_setting_nor_a_factor() -> None:
    weight = nn.Parameter(torch.tensor(2.0))
    with pytest.raises(LossConfigError, match="info_nce: temperature is a parameter, but a setting is a fixed number"):
        get_loss("info_nce", temperature=weight)
    with pytest.raises(
        LossContractError, match="a factor of cross_entropy is a fixed number; a parameter would not be"
    ):
        weight * CROSS_ENTROPY


numbers = st.floats(-4, 4).filter(lambda x: x == 0 or abs(x) > 1e-3)


@given(first=numbers, second=numbers, third=numbers.filter(bool))
def test_arithmetic_of_losses_is_that_of_their_values(first: float, second: float, third: float) -> None:
    data, rows = [rollout(), rollout()], [[-1.0, -2.0, -0.5], [-0.25, -1.0, -3.0]]
    (a, da, _), (b, db, _) = (evaluated(loss, data, rows) for loss in (CROSS_ENTROPY, PPO))
    for mixture, value, slope in (
        (first * CROSS_ENTROPY - PPO * second, first * a - second * b, (first, -second)),
        (CROSS_ENTROPY / third + PPO, a / third + b, (1 / third, 1)),
        (sum([CROSS_ENTROPY, second * PPO]), a + second * b, (1, second)),
        (-(CROSS_ENTROPY + PPO) / third, -(a + b) / third, (-1 / third, -1 / third)),
    ):
        total, gradients, _ = evaluated(mixture, data, rows)
        assert total == pytest.approx(value, abs=1e-9)
        for got, one, other in zip(gradients, da, db, strict=True):
            torch.testing.assert_close(got, slope[0] * one + slope[1] * other)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: math.nan * CROSS_ENTROPY, "cross_entropy is multiplied by nan: a factor is a finite number"),
        (lambda: CROSS_ENTROPY * math.inf, "cross_entropy is multiplied by inf"),
        (lambda: CROSS_ENTROPY / 0, "cross_entropy cannot be divided by 0"),
        (lambda: CROSS_ENTROPY / math.nan, "cross_entropy is multiplied by nan"),
        (lambda: CROSS_ENTROPY * PPO, "cross_entropy is multiplied by numbers, not by ppo"),
        (lambda: "2x" * CROSS_ENTROPY, "cross_entropy is multiplied by numbers, not by '2x'"),
        (lambda: torch.ones(2) * CROSS_ENTROPY, "cross_entropy is multiplied by numbers, not by"),
        (lambda: CROSS_ENTROPY - CROSS_ENTROPY, "a mixture cannot hold one loss twice"),
    ],
)
def test_arithmetic_that_makes_no_loss_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(LossContractError, match=message):
        call()


@pytest.mark.parametrize("call", [lambda: 1 + CROSS_ENTROPY, lambda: CROSS_ENTROPY + 1, lambda: 2 - CROSS_ENTROPY])
def test_a_number_cannot_be_added(call: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        call()


@pytest.mark.parametrize("name", [*list_presets(), "stable_reinforce"])
def test_no_loss_of_ones_own_takes_the_id_of_another_systems(name: str) -> None:
    with pytest.raises(DuplicateLossError, match=f"'{name}' is (another system's loss|reserved)"):
        register_loss(name)(lambda logprobs: -logprobs)
    with pytest.raises(DuplicateLossError):
        register_loss("mine", aliases=[name])(lambda logprobs: -logprobs)


def test_an_id_of_ones_own_may_have_a_colon() -> None:
    register_loss("mine:ppo")(lambda logprobs: -logprobs)
    unregister_loss("mine:ppo")


def test_a_raw_value_put_into_a_datum_is_read_as_one_given_at_first_or_refused_by_name() -> None:
    one = datum(2, weights=[1, 1])
    one.loss_fn_inputs["weights"] = [0.0, 0.5]  # type: ignore[index]
    assert evaluated(CROSS_ENTROPY, [one], [[-1.0, -2.0]])[0] == 1.0
    one.loss_fn_inputs["weights"] = "heavy"  # type: ignore[index]
    with pytest.raises(DtypeError, match=r"loss_fn_inputs\['weights'\]"):
        CROSS_ENTROPY.check([one])


def test_a_loss_that_writes_into_what_it_is_given_is_refused() -> None:
    def doubles(logprobs: Tensor, advantages: Tensor) -> Tensor:
        return -logprobs * advantages.mul_(2)

    given = datum(2, weights=[1, 1], advantages=[1, 2])
    with pytest.raises(LossContractError, match=r"doubles changes its advantages in place, which other losses"):
        evaluated(loss_of(doubles), [given], [[-1.0, -2.0]])
    assert given.loss_fn_inputs["advantages"].data == [1, 2]


@pytest.mark.parametrize("name", ["info_nce", "multiple_negatives_ranking", "siglip"])
@pytest.mark.parametrize("ids", [[0.5, 1.5], [16777217.0, 16777216.0]])
def test_ids_that_are_no_integers_are_refused(name: str, ids: list[float]) -> None:
    rows = [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [1.0, 1.0]]
    with pytest.raises(LabelError, match=f"{name}: document_id of datum . is .*: give an integer"):
        evaluated(get_loss(name), [Datum([0], {"document_id": one}) for one in ids * 2], rows)
    whole = [Datum([0], {"document_id": kind(int(one) % 10)}) for one in ids for kind in (int, float)]
    evaluated(get_loss(name), whole, rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gap", [-30.0, -12.0, 0.0, 12.0, 30.0])
def test_a_ratio_of_half_precision_is_finite_at_its_cap_and_beyond_its_own_range(
    dtype: torch.dtype, gap: float
) -> None:
    new, old = (torch.tensor([x], dtype=dtype, requires_grad=True) for x in (-40.0 + gap, -40.0))
    ratio = safe_ratio(new, old)
    assert float(ratio.detach()) == pytest.approx(math.exp(max(-20.0, min(20.0, gap))), rel=1e-5)
    for estimator in ("k1", "k2", "k3", "abs", "k1+", "k3+", "k3-corrected"):
        assert torch.isfinite(kl_estimate(new, old, estimator)).all()
    assert all(math.isfinite(one) for one in stats.values(ratio_stats(new, old)).values())
