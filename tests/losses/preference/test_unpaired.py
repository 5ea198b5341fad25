"""Losses of single labelled responses, in numbers to be redone on paper; and what a label may be."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lossbook import get_loss
from lossbook.datums.errors import EmptyLossError, LabelError, LossConfigError, MissingInput
from lossbook.losses import Seqs
from lossbook.losses.preference import kto

from ..cases import datum
from .preference_pairs import of_ratios, sigmoid, softplus

EXACT = {"rel": 1e-12, "abs": 1e-12}


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_a_desirable_response_is_raised_and_another_lowered(loss: str) -> None:
    value, gradients, metrics = of_ratios(loss, 2.0, -4.0, 0.0, beta=0.5, inputs={"label": (1, 0, 1)})
    assert value == pytest.approx((sigmoid(-1) + sigmoid(-2) + 0.5) / 3, **EXACT)
    slopes = [-0.5 * sigmoid(1) * sigmoid(-1) / 3, 0.5 * sigmoid(2) * sigmoid(-2) / 3, -0.125 / 3]
    assert gradients == pytest.approx(slopes, **EXACT)
    assert metrics["desirable_reward"] == 0.5
    assert metrics["undesirable_reward"] == -2.0
    assert metrics["desirable"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_weights_scale_either_label_and_not_the_mean(loss: str) -> None:
    settings = {"beta": 1.0, "desirable_weight": 3.0, "undesirable_weight": 0.5}
    value, gradients, _ = of_ratios(loss, 0.0, 0.0, inputs={"label": (1, 0)}, **settings)
    assert value == pytest.approx((1.5 + 0.25) / 2, **EXACT)
    assert gradients == pytest.approx([-0.375, 0.0625], **EXACT)


@pytest.mark.parametrize(
    ("others", "kl"),
    [
        pytest.param((1.0, 3.0), 2.0, id="the mean log-ratio of the mismatched"),
        pytest.param((3.0,), 3.0, id="of a single one"),
        pytest.param((-1.0, -3.0), 0.0, id="not below 0"),
        pytest.param((1.0, -1.0), 0.0, id="exactly 0"),
        pytest.param((), 0.0, id="without any"),
    ],
)
def test_kto_measures_from_the_estimated_kl(others: tuple[float, ...], kl: float) -> None:
    marks = {"label": (1, 0, *[1] * len(others)), "is_mismatched": (0, 0, *[1] * len(others))}
    value, gradients, metrics = of_ratios("kto", 1.0, 1.0, *others, beta=0.5, inputs=marks)
    shifted = 0.5 * (1.0 - kl)
    assert metrics["kl"] == kl
    assert value == pytest.approx((sigmoid(-shifted) + sigmoid(shifted)) / 2, **EXACT)
    slope = 0.5 * sigmoid(shifted) * sigmoid(-shifted) / 2
    assert gradients == pytest.approx([-slope, slope, *[0.0] * len(others)], **EXACT)
    assert metrics["desirable_reward"] == 0.5  # around the reference, not around the KL
    assert metrics["desirable"] == 0.5


def test_mismatched_responses_are_not_counted() -> None:
    data = [datum(1, weights=[1], ref_logprobs=[-1.0], label=1, is_mismatched=int(i in (1, 2))) for i in range(5)]
    assert float(get_loss("kto").check(data)) == 3
    assert float(get_loss("kto").check([d for i, d in enumerate(data) if i not in (1, 2)])) == 3


def test_losses_of_labelled_responses_keep_their_order_among_mismatched_ones() -> None:
    ratios, label, aside = [3.0, 1.0, -2.0, 0.5, -1.0, 0.0], [1, 1, 0, 0, 0, 1], [0, 1, 0, 1, 0, 0]
    data = [
        datum(1, weights=[1], ref_logprobs=[-8.0], label=one, is_mismatched=two)
        for one, two in zip(label, aside, strict=True)
    ]
    rows = [torch.tensor([-8.0 + ratio], dtype=torch.float64) for ratio in ratios]
    # z0 is (1 + 0.5) / 2; of labels 1, 0, 0, 1 and ratios 3, -2, -1, 0.
    right = [sigmoid(0.75 - 3), sigmoid(-2 - 0.75), sigmoid(-1 - 0.75), sigmoid(0.75)]
    assert get_loss("kto", beta=1.0).values(data, rows).tolist() == pytest.approx(right)
    logprobs, flags = torch.cat(rows), torch.tensor(aside).double()
    called, _ = kto(logprobs, torch.full((6,), -8.0), Seqs([1] * 6), torch.tensor(label), flags, beta=1.0)
    assert called.tolist() == pytest.approx(right)


def test_a_batch_of_mismatched_responses_alone_has_nothing_to_divide_by() -> None:
    data = [datum(1, weights=[1], ref_logprobs=[-1.0], label=1, is_mismatched=1)] * 2
    with pytest.raises(EmptyLossError, match="nothing to divide by"):
        get_loss("kto").check(data)


def labelled(**marks: Any) -> Any:
    good = datum(1, weights=[1], ref_logprobs=[-1.0], label=1)
    return [good, datum(1, weights=[1], ref_logprobs=[-1.0], **marks)]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        pytest.param(2, "kto: label of datum 1 is 2: it must be 0 or 1.", id="a class"),
        pytest.param(0.5, "kto: label of datum 1 is 0.5: it must be 0 or 1.", id="a probability"),
        pytest.param(-1, "kto: label of datum 1 is -1: it must be 0 or 1. Did you mean 0?", id="the other convention"),
    ],
)
def test_a_label_is_0_or_1(label: float, message: str) -> None:
    with pytest.raises(LabelError) as caught:
        get_loss("kto").check(labelled(label=label))
    assert str(caught.value) == message


@pytest.mark.parametrize("label", [0, 1, 0.0, 1.0, [1]])
def test_a_label_may_be_a_whole_or_a_real_number_or_a_list_of_one(label: Any) -> None:
    assert float(get_loss("kto").check(labelled(label=label))) == 2


def test_a_response_without_a_label_is_an_error_that_names_it() -> None:
    with pytest.raises(MissingInput, match=r"^kto reads 'label', which datum 1 of 2 does not carry"):
        get_loss("kto").check(labelled())


def test_kto_is_bounded_however_far_the_policy_went() -> None:
    value, gradients, metrics = of_ratios("kto", -1e4, -1e4, beta=1.0, inputs={"label": (1, 0)})
    assert value == pytest.approx(0.5)
    assert all(math.isfinite(g) for g in gradients)
    assert metrics["desirable_reward"] == -1e4


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_one_kind_of_response_may_weigh_nothing(name: str) -> None:
    for settings in ({"desirable_weight": 0.0}, {"undesirable_weight": 0.0}):
        assert get_loss(name, **settings).settings.items() >= settings.items()
    with pytest.raises(LossConfigError, match="desirable_weight and undesirable_weight are both 0"):
        get_loss(name, desirable_weight=0.0, undesirable_weight=0.0)


def test_bco_classifies_around_the_mean_reward_of_the_call() -> None:
    # Log-ratios 2, -4, 5 at beta 0.5 are rewards 1, -2, 2.5, so the shift is 0.5 and the leads are 0.5, -2.5, 2.
    value, gradients, metrics = of_ratios("bco", 2.0, -4.0, 5.0, beta=0.5, inputs={"label": (1, 0, 0)})
    assert value == pytest.approx((softplus(-0.5) + softplus(-2.5) + softplus(2.0)) / 3, **EXACT)
    slopes = [-0.5 * sigmoid(-0.5) / 3, 0.5 * sigmoid(-2.5) / 3, 0.5 * sigmoid(2.0) / 3]  # none through the shift
    assert gradients == pytest.approx(slopes, **EXACT)
    assert metrics["reward_shift"] == metrics["mean_reward"] == 0.5
    assert metrics["desirable_reward"] == 1.0
    assert metrics["undesirable_reward"] == 0.25
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["desirable"] == pytest.approx(1 / 3)


def test_a_given_shift_takes_the_place_of_the_mean() -> None:
    # Rewards 1 and -2 around a shift of 2: leads -1 and -4.
    inputs = {"label": (1, 0), "shift": (2.0, 2.0)}
    value, gradients, metrics = of_ratios("bco", 1.0, -2.0, beta=1.0, inputs=inputs)
    assert value == pytest.approx((softplus(1.0) + softplus(-4.0)) / 2, **EXACT)
    assert gradients == pytest.approx([-sigmoid(1.0) / 2, sigmoid(-4.0) / 2], **EXACT)
    assert metrics["reward_shift"] == 2.0
    assert metrics["mean_reward"] == -0.5
    assert metrics["accuracy"] == 0.5


def test_a_response_on_the_shift_is_not_told_apart() -> None:
    value, _, metrics = of_ratios("bco", 1.0, 1.0, beta=1.0, inputs={"label": (1, 0), "shift": (1.0, 1.0)})
    assert value == pytest.approx(math.log(2), **EXACT)
    assert metrics["accuracy"] == 0.5  # on the shift counts as undesirable


def test_bco_without_a_shift_of_pairs_is_half_of_bco_pair() -> None:
    inputs = {"label": (1, 0, 1, 0), "shift": (0.0,) * 4}
    ratios = (1.0, -3.0, -2.0, 0.5)
    value, gradients, _ = of_ratios("bco", *ratios, beta=0.5, inputs=inputs)
    pair_value, pair_gradients, _ = of_ratios("bco_pair", *ratios, beta=0.5)
    assert value == pytest.approx(pair_value / 2, **EXACT)
    assert gradients == pytest.approx([g / 2 for g in pair_gradients], **EXACT)


def test_a_single_response_is_its_own_shift_and_counts_as_undesirable() -> None:
    value, gradients, metrics = of_ratios("bco", 3.0, beta=1.0, inputs={"label": (1,)})
    assert value == pytest.approx(math.log(2), **EXACT)
    assert gradients == pytest.approx([-0.5], **EXACT)
    assert (metrics["mean_reward"], metrics["accuracy"]) == (3.0, 0.0)
    _, _, below = of_ratios("bco", 0.5, beta=1.0, inputs={"label": (0,), "shift": (1.0,)})
    assert below["accuracy"] == 1.0
