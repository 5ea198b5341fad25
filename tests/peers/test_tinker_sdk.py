"""The official Tinker SDK, without a network: its data types are taken as they are, and every loss runs through its custom path.

`TrainingClient._compute_custom_loss` is the part of the SDK's forward_backward_custom that runs in the user's process:
it calls the function with the SDK's own datums, takes the gradient, and ships its negative as weights of a
cross-entropy. What it ships must be minus our gradient.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossbook import Datum, ModelInput, TensorData, get_loss
from lossbook.datums.errors import LossContractError, MissingInput
from lossbook.datums.types import as_datum, as_tensor_data
from lossbook.losses import Loss
from lossbook.losses.testing import strategies

from .portability import losses, reads_logprobs_only

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # inside the SDK, not ours to mend
    tinker = pytest.importorskip("tinker", reason="the official SDK comes with lossbook[dev]")
    from tinker.lib.public_interfaces.training_client import TrainingClient

#: The SDK hands out logprobs and nothing else, so a loss that also reads another output of the model cannot go there; one
#: that reads only another output would take the logprobs for it.
PORTABLE = [loss for loss in losses() if reads_logprobs_only(loss)]
NOT_PORTABLE = [loss for loss in losses() if not reads_logprobs_only(loss)]

LENGTHS = (3, 5, 2, 4)
#: One datum is masked whole, since a loss must touch it all the same; another has a fraction for a weight.
WEIGHTS = [[0, 1, 1], [0, 0, 1, 1, 0.5], [1, 1], [0, 1, 1, 0]]


def rows(low: float, high: float, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [low + (high - low) * torch.rand(n, generator=generator) for n in LENGTHS]


INPUTS = {
    "weights": [torch.tensor(row, dtype=torch.float32) for row in WEIGHTS],
    "sampling_logprobs": rows(-3, 0, 1),
    "ref_logprobs": rows(-3, 0, 2),
    "advantages": rows(-1, 1, 3),
}
LOGPROBS = rows(-3, 0, 4)


def tinker_datums(renamed: dict[str, str] | None = None) -> list[Any]:
    """The rollouts as the SDK's datums, keys renamed."""
    return [
        tinker.Datum(
            model_input=tinker.ModelInput.from_ints(list(range(n))),
            loss_fn_inputs={
                "target_tokens": torch.arange(1, n + 1),
                **{(renamed or {}).get(key, key): values[i] for key, values in INPUTS.items()},
            },
        )
        for i, n in enumerate(LENGTHS)
    ]


def our_datums() -> list[Datum]:
    return [
        Datum(
            ModelInput.from_ints(list(range(n))),
            {"target_tokens": torch.arange(1, n + 1), **{key: values[i] for key, values in INPUTS.items()}},
        )
        for i, n in enumerate(LENGTHS)
    ]


def sent_by_sdk(data: list[Any], function: Any, logprobs: list[Tensor]) -> tuple[list[Tensor], Any]:
    """What the SDK would send: the weights of each datum, and the rest of its result."""
    outputs = [{"logprobs": tinker.TensorData.from_torch(row)} for row in logprobs]
    forward = tinker.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", loss_fn_outputs=outputs, metrics={})
    result = TrainingClient._compute_custom_loss(data, function, forward)
    return [datum.loss_fn_inputs["weights"].to_torch() for datum in result.data], result


def our_gradient(function: Any, logprobs: list[Tensor]) -> tuple[float, list[Tensor], dict[str, float]]:
    leaves = [row.clone().requires_grad_() for row in logprobs]
    value, metrics = function(our_datums(), leaves)
    return float(value.detach()), list(torch.autograd.grad(value, leaves)), metrics


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("cross_entropy", {}),
        ("cross_entropy", {"reduction": "token-mean"}),
        ("importance_sampling", {}),
        ("ppo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}),
        ("grpo", {"kl_coefficient": 0.1}),
        ("dpo", {}),
    ],
)
def test_a_loss_passed_as_the_custom_function_ships_minus_its_gradient(name: str, config: dict[str, Any]) -> None:
    loss = get_loss(name, **config)
    value, gradient, metrics = our_gradient(loss, LOGPROBS)
    weights, result = sent_by_sdk(tinker_datums(), loss, LOGPROBS)
    assert all(torch.equal(sent, -own) for sent, own in zip(weights, gradient, strict=True))
    assert any(sent.any() for sent in weights)
    assert result.loss_sum == value
    assert result.metrics == metrics
    assert all(type(metric) is float for metric in result.metrics.values())


def as_tinkers(datum: Datum) -> Any:
    """The datum as the SDK's own."""
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(datum.model_input.to_ints()),
        loss_fn_inputs={
            key: tinker.TensorData(data=value.data, dtype=value.dtype, shape=value.shape)
            for key, value in datum.loss_fn_inputs.items()
        },
    )


@pytest.mark.parametrize("loss", PORTABLE, ids=lambda loss: loss.name)
@given(data=st.data())
@settings(max_examples=5)
def test_every_loss_of_logprobs_ships_minus_its_gradient_on_any_data(loss: Loss, data: st.DataObject) -> None:
    drawn = data.draw(strategies.datums(loss))
    logprobs = [row.float() for row in data.draw(strategies.outputs(loss, drawn))["logprobs"]]
    leaves = [row.clone().requires_grad_() for row in logprobs]
    value, metrics = loss(drawn, leaves)
    gradients = torch.autograd.grad(value, leaves)
    weights, result = sent_by_sdk([as_tinkers(datum) for datum in drawn], loss, logprobs)
    for sent, gradient in zip(weights, gradients, strict=True):
        assert torch.equal(sent, -gradient)
    assert result.loss_sum == float(value.detach())
    assert result.metrics == pytest.approx(metrics, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("loss", [one for one in NOT_PORTABLE if "logprobs" in one.outputs], ids=lambda loss: loss.name)
@given(data=st.data())
@settings(max_examples=2)
def test_a_loss_of_other_outputs_too_says_which_it_lacks(loss: Loss, data: st.DataObject) -> None:
    drawn = data.draw(strategies.datums(loss))
    logprobs = [row.float() for row in data.draw(strategies.outputs(loss, drawn))["logprobs"]]
    lacking = next(name for name in loss.outputs if name != "logprobs")
    with pytest.raises(LossContractError, match=f"reads '{lacking}', which these outputs do not hold"):
        sent_by_sdk([as_tinkers(datum) for datum in drawn], loss, logprobs)


def test_the_losses_that_cannot_go_there_are_those_of_other_outputs() -> None:
    for loss in NOT_PORTABLE:
        assert set(loss.outputs) - {"logprobs"}, loss.name


def test_the_cross_entropy_that_the_service_runs_has_the_custom_losss_gradient() -> None:
    # The service's loss is Σ -logprobs * weights, so with the shipped weights its slope is ours.
    loss = get_loss("grpo")
    _, gradient, _ = our_gradient(loss, LOGPROBS)
    weights, _ = sent_by_sdk(tinker_datums(), loss, LOGPROBS)
    leaves = [row.clone().requires_grad_() for row in LOGPROBS]
    surrogate = sum((-row * weight).sum() for row, weight in zip(leaves, weights, strict=True))
    assert isinstance(surrogate, Tensor)
    for slope, expected in zip(torch.autograd.grad(surrogate, leaves), gradient, strict=True):
        torch.testing.assert_close(slope, expected)


def test_the_sdks_own_key_for_the_samplers_logprobs_is_understood() -> None:
    loss = get_loss("ppo")
    renamed, _ = sent_by_sdk(tinker_datums({"sampling_logprobs": "logprobs"}), loss, LOGPROBS)
    own, _ = sent_by_sdk(tinker_datums(), loss, LOGPROBS)
    assert all(torch.equal(a, b) for a, b in zip(renamed, own, strict=True))


def test_a_mixture_and_a_bound_loss_are_custom_functions_too() -> None:
    mixture = 0.9 * get_loss("grpo") + 0.1 * get_loss("cross_entropy")
    _, gradient, _ = our_gradient(mixture, LOGPROBS)
    for function, data in (
        (mixture, tinker_datums()),
        # A service that refuses extra inputs is sent bare datums.
        (mixture.bind(tinker_datums()), [_bare(datum) for datum in tinker_datums()]),
    ):
        weights, _ = sent_by_sdk(data, function, LOGPROBS)
        assert all(torch.equal(sent, -own) for sent, own in zip(weights, gradient, strict=True))
    with pytest.raises(MissingInput, match=r"^grpo reads 'sampling_logprobs'"):
        sent_by_sdk([_bare(datum) for datum in tinker_datums()], get_loss("grpo"), LOGPROBS)


def _bare(datum: Any) -> Any:
    kept = {key: datum.loss_fn_inputs[key] for key in ("target_tokens", "weights")}
    return tinker.Datum(model_input=datum.model_input, loss_fn_inputs=kept)


def test_several_targets_a_position_also_where_the_sdk_stores_them_sparse() -> None:
    targets = torch.zeros(12, 4, dtype=torch.int64)
    weights = torch.zeros(12, 4)
    targets[3], weights[3] = torch.tensor([5, 6, 7, 8]), torch.tensor([0.5, 0.25, 0.125, 0.125])
    targets[9, 1], weights[9, 1] = 3, 1.0
    datum = tinker.Datum(
        model_input=tinker.ModelInput.from_ints(list(range(12))),
        loss_fn_inputs={"target_tokens": targets, "weights": weights},
    )
    assert datum.loss_fn_inputs["weights"].sparse_crow_indices is not None
    logprobs = torch.full((12, 4), -2.0)
    logprobs[0, 0] = float("-inf")  # masked
    sent, result = sent_by_sdk([datum], get_loss("cross_entropy"), [logprobs])
    assert torch.equal(sent[0], weights)
    assert result.loss_sum == 4


@given(
    values=st.lists(st.lists(st.floats(-9, 9, width=32), min_size=3, max_size=3), min_size=1, max_size=6),
    is_sparse=st.booleans(),
)
@settings(max_examples=40)
def test_tensor_data_goes_there_and_back_unchanged(values: list[list[float]], is_sparse: bool) -> None:
    tensor = torch.tensor(values)
    if is_sparse:
        tensor = torch.where(tensor > 5, tensor, 0.0)
    theirs = tinker.TensorData.from_torch_sparse(tensor) if is_sparse else tinker.TensorData.from_torch(tensor)
    ours = as_tensor_data(theirs, "weights")
    assert torch.equal(ours.to_torch(), tensor)
    assert ours.data == theirs.data
    back = tinker.TensorData(
        data=ours.data,
        dtype=ours.dtype,
        shape=ours.shape,
        sparse_crow_indices=ours.sparse_crow_indices,
        sparse_col_indices=ours.sparse_col_indices,
    )
    assert torch.equal(back.to_torch(), tensor)


def test_datums_go_there_and_back_unchanged() -> None:
    for theirs, ours in zip(tinker_datums(), our_datums(), strict=True):
        taken = as_datum(theirs)
        assert taken.model_input.to_ints() == theirs.model_input.to_ints() == ours.model_input.to_ints()
        assert taken.loss_fn_inputs == ours.loss_fn_inputs
        back = tinker.Datum(
            model_input=tinker.ModelInput.from_ints(taken.model_input.to_ints()),
            loss_fn_inputs={key: value.to_torch() for key, value in taken.loss_fn_inputs.items()},
        )
        assert as_datum(back).loss_fn_inputs == ours.loss_fn_inputs


def test_data_types_are_made_with_the_same_arguments() -> None:
    for make in (tinker.TensorData, TensorData):
        made = make(data=[1, 2, 3, 4], dtype="int64", shape=[2, 2])
        assert (made.data, made.dtype, made.shape, made.tolist()) == ([1, 2, 3, 4], "int64", [2, 2], [[1, 2], [3, 4]])
    for kind in (tinker.ModelInput, ModelInput):
        prompt = kind.from_ints([1, 2]).append_int(3)
        assert (prompt.to_ints(), prompt.length, kind.empty().length) == ([1, 2, 3], 3, 0)
