"""How a loss reads its data: which keys, which numbers, what is refused before any forward, and in what words."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook import Datum, ModelInput, get_loss, stats
from lossbook.datums.errors import (
    DtypeError,
    EmptyLossError,
    LengthMismatchError,
    LossContractError,
    MissingInput,
    NonFiniteLossInput,
    UnknownInput,
)
from lossbook.losses import Outputs

from ..cases import FULL, assert_rows_equal, datum, evaluated, loss_of, rollout

ROW = [-1.2, -1.4, -2.5]


# Keys.


def test_a_missing_input_says_who_wants_what_where_what_is_there_and_the_likely_mend() -> None:
    # The very sentence the house style holds up, with the other key that would have done.
    data = [rollout(omit=("ref_logprobs",))] * 64
    data[3] = rollout(
        omit=("ref_logprobs", "sampling_logprobs"),
        sampling_logprob=[-1.0] * 3,
    )
    with pytest.raises(MissingInput) as caught:
        get_loss("ppo").check(data)
    assert str(caught.value) == (
        "ppo reads 'sampling_logprobs' (or 'logprobs'), which datum 3 of 64 does not carry. It carries: advantages, "
        "sampling_logprob, target_tokens, weights. Did you mean 'sampling_logprob' to be 'sampling_logprobs'?"
    )
    assert isinstance(caught.value, KeyError)


def test_a_missing_input_without_a_likely_misspelling_gets_no_hint() -> None:
    with pytest.raises(MissingInput) as caught:
        get_loss("importance_sampling").check([rollout(omit=("advantages", "weights", "ref_logprobs"))])
    assert str(caught.value) == (
        "importance_sampling reads 'advantages', which datum 0 of 1 does not carry. It carries: sampling_logprobs, "
        "target_tokens."
    )


def test_an_optional_input_that_only_some_datums_carry_is_missing_from_the_others() -> None:
    with pytest.raises(MissingInput, match=r"^grpo reads 'ref_logprobs', which datum 1 of 2 does not carry"):
        get_loss("grpo", kl_coefficient=0.0).check([rollout(), rollout(omit=("ref_logprobs",))])


@pytest.mark.parametrize(
    ("name", "config", "key", "meant"),
    [
        pytest.param("ppo", {}, "clip_low_treshold", "clip_low_threshold", id="a bound of single tokens"),
        pytest.param("grpo", {"kl_coefficient": 0.0}, "ref_logprob", "ref_logprobs", id="the reference"),
        pytest.param("cross_entropy", {}, "weight", "weights", id="the weights"),
    ],
)
def test_a_misspelt_optional_input_is_refused_though_nothing_is_missing(
    name: str, config: dict[str, Any], key: str, meant: str
) -> None:
    data = [rollout(omit=(meant,)), rollout(omit=(meant,), **{key: [0.5] * 3})]
    if name == "cross_entropy":
        data = [datum(3), datum(3, weight=[0, 1, 1])]
    with pytest.raises(UnknownInput) as caught:
        get_loss(name, **({"reduction": "sum"} | config)).check(data)
    assert str(caught.value).startswith(
        f"{name} does not read {key!r}, which datum 1 of 2 carries. Did you mean {meant!r}? It reads: "
    )


def test_keys_a_loss_does_not_read_are_tolerated_unless_strict() -> None:
    data = [rollout(), rollout(rewards=[1.0, 2.0])]
    loss = get_loss("cross_entropy")
    loss.check(data)
    with pytest.raises(UnknownInput) as caught:
        loss.check(data, strict=True)
    assert str(caught.value) == (
        "cross_entropy does not read 'sampling_logprobs', which datum 0 of 2 carries. It reads: target_tokens, weights"
    )
    loss.check([datum(3, weights=[0, 1, 1])], strict=True)


@pytest.mark.parametrize("key", ["sampling_logprobs", "logprobs"])
def test_the_samplers_logprobs_answer_to_either_key(key: str) -> None:
    data = [
        rollout(
            omit=("sampling_logprobs", "ref_logprobs"),
            **{key: FULL["sampling_logprobs"]},
        )
    ]
    loss = get_loss("ppo")
    loss.check(data, strict=True)
    assert evaluated(loss, data, [ROW])[0] == evaluated(loss, [rollout(omit=("ref_logprobs",))], [ROW])[0]


def test_of_both_keys_the_losss_own_name_is_read() -> None:
    data = [rollout(logprobs=[-7.0] * 3)]
    assert evaluated(get_loss("ppo"), data, [ROW])[0] == evaluated(get_loss("ppo"), [rollout()], [ROW])[0]


# Weights.


def test_missing_weights_mean_ones_under_sum_also_where_the_advantage_is_zero() -> None:
    bare = rollout(omit=("weights",), advantages=[0.0, 1.0, -1.0])
    ones = rollout(advantages=[0.0, 1.0, -1.0], weights=[1.0] * 3)
    loss = get_loss("ppo")
    value, gradients, metrics = evaluated(loss, [bare], [ROW])
    expected, slopes, same = evaluated(loss, [ones], [ROW])
    assert value == expected
    assert_rows_equal(gradients, slopes, 0)
    assert metrics == same
    assert metrics["nll"] == pytest.approx(-sum(ROW) / 3)  # three tokens, not the two with an advantage


@pytest.mark.parametrize("reduction", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
def test_missing_weights_are_an_error_where_something_is_divided(reduction: str) -> None:
    data = [rollout(), rollout(omit=("weights",), weight=[1.0] * 3)]
    with pytest.raises(MissingInput) as caught:
        get_loss("grpo", reduction=reduction).check(data)
    assert str(caught.value) == (
        f"grpo with reduction {reduction!r} reads 'weights', which datum 1 of 2 does not carry. It carries: advantages, "
        "ref_logprobs, sampling_logprobs, target_tokens, weight. Did you mean 'weight' to be 'weights'? Only under "
        "reduction 'sum' do missing weights mean ones; they are never guessed from the advantages"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_weights_must_be_finite(value: float) -> None:
    with pytest.raises(NonFiniteLossInput) as caught:
        get_loss("cross_entropy").check([datum(3), datum(3, weights=[1.0, 1.0, value])])
    assert str(caught.value) == f"cross_entropy: weights of datum 1 of 2 is {value} at position 2"
    with pytest.raises(NonFiniteLossInput, match=r"weights of datum 0 of 1 is .* at position 1, target 0$"):
        get_loss("cross_entropy").check([datum([[1, 2], [3, 4]], weights=[[1.0, 0.0], [value, 0.0]])])


@pytest.mark.parametrize("name", ["cross_entropy", "ppo", "dpo", "info_nce"])
def test_no_datums_are_nothing_to_train_on(name: str) -> None:
    with pytest.raises(EmptyLossError, match=f"^{name}: there are no datums$"):
        get_loss(name).check([])


# Outputs.


def test_a_loss_may_read_several_outputs_by_name() -> None:
    def bonus(logprobs: Tensor, entropy: Tensor) -> Tensor:
        return -logprobs - 0.5 * entropy

    loss = loss_of(bonus)
    assert loss.outputs == ("logprobs", "entropy")
    data = [datum(2, weights=[0, 1]), datum(1)]
    outputs = {"logprobs": [torch.tensor([-1.0, -2.0]), torch.tensor([-3.0])]}
    value, _ = loss(data, {**outputs, "entropy": [torch.tensor([9.0, 1.0]), torch.tensor([2.0])]})
    assert float(value) == 2 + 3 - 0.5 * (1 + 2)
    with pytest.raises(LossContractError, match=r"^the loss reads 'entropy', which these outputs do not hold$"):
        loss(data, outputs)


def test_outputs_may_hold_only_the_positions_that_the_loss_covers() -> None:
    data = [rollout(), rollout(weights=[1.0, 0.0, 0.0])]
    loss = get_loss("grpo")
    active = loss.active(data)
    assert active.tolist() == [False, True, True, True, False, False]
    rows = torch.tensor([ROW, ROW], dtype=torch.float64)
    whole, metrics = loss.terms(data, list(rows))
    packed, same = loss.terms(data, Outputs(logprobs=rows.reshape(-1)[active], active=active))
    assert float(packed) == float(whole)
    assert stats.values(same) == stats.values(metrics)


@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        pytest.param(
            torch.zeros(2, 3),
            LossContractError,
            "expected a list with one tensor of logprobs per datum, got Tensor",
            id="one tensor for all",
        ),
        pytest.param([torch.zeros(3)], LengthMismatchError, "1 tensors of logprobs for 2 datums", id="too few tensors"),
    ],
)
def test_outputs_are_a_list_with_one_tensor_a_datum(outputs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        get_loss("cross_entropy")([datum(3)] * 2, outputs)
    assert str(caught.value) == message


# What a loss function returns.


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        pytest.param(
            lambda logprobs: -logprobs.mean(),
            "broken is per token, so it must return losses of shape [3], not []. Return them unreduced: the registry reduces "
            "them",
            id="a loss that reduced itself",
        ),
        pytest.param(
            lambda logprobs: 1.0,
            "broken must return a tensor of losses, or (losses, metrics), not float",
            id="a number",
        ),
        pytest.param(
            lambda logprobs: (-logprobs, [1.0]),
            "broken must return its metrics as a dict, not list",
            id="metrics in a list",
        ),
        pytest.param(
            lambda logprobs: (-logprobs, {"nll": 1.0}),
            "broken: metric 'nll' is a float, which cannot be merged over micro-batches. Return stats.mean(tensor), "
            "stats.sum, stats.min or stats.max of unreduced values",
            id="a metric that cannot be merged",
        ),
    ],
)
def test_a_loss_function_returns_unreduced_losses_and_mergeable_metrics(returned: Any, message: str) -> None:
    def broken(logprobs: Tensor) -> Any:
        return returned(logprobs)

    with pytest.raises(LossContractError) as caught:
        loss_of(broken)([datum(3)], [torch.zeros(3)])
    assert str(caught.value) == message


@pytest.mark.parametrize(("per", "shape"), [("datum", [2]), ("pair", [1]), ("batch", [])])
def test_what_is_returned_is_about_what_the_loss_declared(per: str, shape: list[int]) -> None:
    def per_token(logprobs: Tensor) -> Tensor:
        return -logprobs

    with pytest.raises(LossContractError) as caught:
        loss_of(per_token, per=per)([datum(3, weights=[1, 1, 1])] * 2, [torch.zeros(3)] * 2)
    assert str(caught.value).startswith(f"per_token is per {per}, so it must return losses of shape {shape}, not [6].")


def test_a_losss_own_metrics_stand_beside_the_mean_negative_log_likelihood() -> None:
    def counting(logprobs: Tensor) -> Any:
        return -logprobs, {"tokens": stats.sum(torch.ones_like(logprobs)), "nll": stats.max(-logprobs)}

    _, _, metrics = evaluated(loss_of(counting), [datum(3, weights=[0, 1, 1])], [[-9.0, -1.0, -2.0]])
    assert metrics == {"tokens": 2, "nll": 2}  # its own "nll" instead of the common one


# What the trainer asks.


@pytest.mark.parametrize(
    ("name", "config", "couples"),
    [
        ("cross_entropy", {}, "token"),
        ("grpo", {}, "token"),
        ("ppo", {"reduction": "seq-mean-token-mean"}, "datum"),
        ("ppo", {"reduction": "seq-mean-token-sum-norm", "norm_length": 9}, "datum"),
        ("dpo", {}, "pair"),
        ("info_nce", {}, "batch"),
    ],
)
def test_what_must_be_seen_together_follows_from_the_loss_and_its_reduction(
    name: str, config: dict[str, Any], couples: str
) -> None:
    assert get_loss(name, **config).couples == couples


# Other people's datums.


def test_datums_of_other_makers_are_taken_by_their_structure() -> None:
    ours = rollout()
    inputs = {
        key: SimpleNamespace(data=value.data, dtype=value.dtype, shape=value.shape)
        for key, value in ours.loss_fn_inputs.items()
    }
    chunks = [SimpleNamespace(tokens=[0, 1]), SimpleNamespace(tokens=[2])]
    theirs = SimpleNamespace(model_input=SimpleNamespace(chunks=chunks), loss_fn_inputs=inputs)
    mapping: Any = {"model_input": [0, 1, 2], "loss_fn_inputs": dict(ours.loss_fn_inputs)}
    expected = evaluated(get_loss("grpo"), [ours] * 2, [ROW] * 2)
    result = evaluated(get_loss("grpo"), [theirs, mapping], [ROW] * 2)  # type: ignore[list-item]
    assert result[0] == expected[0]
    assert result[2] == expected[2]
    with pytest.raises(DtypeError, match=r"^expected a Datum \(model_input, loss_fn_inputs\), got int"):
        get_loss("cross_entropy").check([3])  # type: ignore[list-item]


# Services that refuse extra inputs.


def test_a_bound_loss_reads_the_full_datums_whatever_it_is_handed() -> None:
    full = [rollout(), rollout(advantages=[2.0, 2.0, 2.0])]
    bare = [Datum(ModelInput.from_ints([0, 1, 2]), {"target_tokens": [0, 1, 2]})] * 2
    rows = [torch.tensor(ROW, requires_grad=True), torch.tensor(ROW, requires_grad=True)]
    loss = get_loss("grpo")
    with pytest.raises(MissingInput):
        loss(bare, rows)
    value, metrics = loss.bind(full)(bare, rows)
    expected, same = loss(full, rows)
    assert value.requires_grad
    assert torch.equal(value, expected)
    assert metrics == same


def test_a_bound_loss_refuses_another_number_of_datums() -> None:
    with pytest.raises(LengthMismatchError, match=r"^ppo is bound to 2 datums but was handed 1$"):
        get_loss("ppo").bind([rollout()] * 2)([rollout()], [torch.tensor(ROW)])


def test_a_bare_list_is_not_taken_for_an_output_that_no_service_hands_out() -> None:
    # Logprobs in the place of logsumexp would give a number, and a wrong one.
    with pytest.raises(LossContractError) as caught:
        get_loss("z_loss")([datum(2, weights=[1, 1])], [torch.tensor([-1.0, -2.0])])
    assert str(caught.value) == (
        "the loss reads logsumexp, and a bare list is taken for logprobs or embeddings: pass it by name, "
        '{"logsumexp": [...]}. A service that returns only logprobs cannot run this loss'
    )
