"""Rejection in the data: which weights become 0, that the rest is untouched, and the denominator."""

from __future__ import annotations

import pytest
import torch

from lossbook import Datum, get_loss
from lossbook.datums.errors import EmptyLossError, LossConfigError, MissingInput
from lossbook.losses import without_rejected

from .rollouts import BASE, TEN, TWO, datum, evaluated


def weights(data: list[Datum]) -> list[list[float]]:
    return [one.loss_fn_inputs["weights"].to_numpy().tolist() for one in data]


def test_rejected_tokens_get_weight_0_and_the_others_keep_theirs() -> None:
    data = [datum([TWO, -TWO, TEN], weights=[1.0, 0.5, 2.0]), datum([0.0])]
    kept = without_rejected(data, "k3", high=0.25)  # k3 of log 2 is .307, of -log 2 .193
    assert weights(kept) == [[0, 0.5, 0], [1]]
    assert weights(data) == [[1, 0.5, 2], [1]]
    assert kept[0].model_input == data[0].model_input
    before, after = (dict(one[0].loss_fn_inputs) for one in (data, kept))
    assert {k: v for k, v in before.items() if k != "weights"} == {k: v for k, v in after.items() if k != "weights"}


def test_a_whole_response_is_rejected_by_its_tokens_of_weight() -> None:
    data = [datum([TWO, TWO], weights=[1.0, 1.0]), datum([0.0, TEN], weights=[1.0, 0.0])]
    assert weights(without_rejected(data, "k1", over="mean", low=-0.1, high=0.1)) == [[0, 0], [1, 0]]


def test_what_is_rejected_leaves_the_denominator() -> None:
    data = [datum([TEN, 0.0, 0.0])]
    loss = get_loss("ppo", reduction="token-mean")
    assert evaluated(loss, *without_rejected(data, high=1.0))[0] == 1
    within = get_loss("ppo+reject_token_k3", token_k3_high=1.0, reduction="token-mean")
    assert evaluated(within, *data)[0] == pytest.approx(2 / 3)


def test_data_without_weights_have_all_tokens() -> None:
    one = datum([TWO, 0.0])
    bare = Datum(one.model_input, {k: v for k, v in one.loss_fn_inputs.items() if k != "weights"})
    assert weights(without_rejected([bare], high=0.1)) == [[0, 1]]


def test_of_k_targets_each_slot_is_rejected_by_itself() -> None:
    table = {
        "target_tokens": [[0, 1], [2, 3]],
        "weights": [[1.0, 2.0], [0.0, 1.0]],
        "sampling_logprobs": [[BASE, BASE], [BASE, BASE]],
        "rollout_logprobs": [[BASE - TWO, BASE + TWO], [BASE, BASE - TEN]],
    }
    kept = without_rejected([Datum([0, 1], table)], "k3", high=0.25)
    assert weights(kept) == [[[0, 2], [0, 0]]]


def test_datums_of_fewer_targets_keep_their_shape() -> None:
    wide = {"target_tokens": [[0, 1]], "sampling_logprobs": [[BASE, BASE]], "rollout_logprobs": [[BASE, BASE - TEN]]}
    thin = {"target_tokens": [[0]], "sampling_logprobs": [[BASE]], "rollout_logprobs": [[BASE - TEN]]}
    assert weights(without_rejected([Datum([0], wide), Datum([0], thin)], high=1.0)) == [[[1, 0]], [[0]]]


def test_what_a_loss_would_refuse_is_refused() -> None:
    one = datum([0.0])
    with pytest.raises(MissingInput, match="rollout_logprobs"):
        without_rejected([Datum(one.model_input, {"target_tokens": [0], "sampling_logprobs": [BASE]})], high=1.0)
    with pytest.raises(EmptyLossError):
        without_rejected([datum([0.0], weights=[0.0])], high=1.0)
    with pytest.raises(EmptyLossError):
        without_rejected([], high=1.0)
    with pytest.raises(LossConfigError, match="needs the setting 'token_k3_high'"):
        without_rejected([one])


def test_all_may_be_rejected_and_then_there_is_nothing_to_train_on() -> None:
    (kept,) = without_rejected([datum([TEN])], high=0.1)
    with pytest.raises(EmptyLossError):
        get_loss("ppo")([kept], [torch.tensor([BASE])])
