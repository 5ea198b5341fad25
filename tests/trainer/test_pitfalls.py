"""What goes wrong silently with hosted training APIs, one test for each pitfall: here it is an error, or a number."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lossbook as lb
from lossbook.datums.errors import (
    EmptyLossError,
    LengthMismatchError,
    LossContractError,
    NonDifferentiableLossError,
    NonFiniteGradientError,
    OptimizerError,
    UnseenFailureWarning,
    WorkerError,
)
from lossbook.trainer.clients.training import TrainingClient

MakeDatums = Callable[..., list[lb.Datum]]
StateOf = Callable[[TrainingClient], dict[str, Any]]
GradientsOf = Callable[[TrainingClient], dict[str, Tensor]]
PARAMS = lb.AdamParams(learning_rate=1e-2)


def total(data, logprobs_list):
    return sum(-logprobs.sum() for logprobs in logprobs_list), {}


# --- weights that are shifted by one ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cross_entropy", total], ids=["by name", "custom"])
@pytest.mark.parametrize("count", [3, 5])
def test_misaligned_weights_are_an_error_that_names_datum_key_and_mend(
    loss: Any, count: int, training: TrainingClient
) -> None:
    sound = lb.datum_from_tokens_weights([1, 2, 3], [0.0, 1.0, 1.0])
    wrong = lb.Datum(lb.ModelInput.from_ints([1, 2, 3, 4]), {"target_tokens": [2, 3, 4, 5], "weights": [1.0] * count})
    with pytest.raises(LengthMismatchError) as caught:
        training.forward_backward([sound, wrong], loss).result()
    message = str(caught.value)
    assert "datum 1 of 2" in message
    assert f"weights has {count} entries" in message
    assert "Off by one" in message
    assert "datum_from_tokens_weights" in message


def test_multi_target_weights_of_one_a_position_are_told_to_be_row_major(training: TrainingClient) -> None:
    datum = lb.Datum(lb.ModelInput.from_ints([1, 2]), {"target_tokens": [[1, 2], [3, 4]], "weights": [1.0, 1.0]})
    with pytest.raises(LengthMismatchError, match=r"target_tokens is \[2, 2\].*row-major"):
        training.forward_backward([datum], "cross_entropy").result()


# --- a loss that does not depend on the model -------------------------------------------------------------------------


def detached(data, logprobs_list):
    return sum(-logprobs.detach().sum() for logprobs in logprobs_list), {}


def through_item(data, logprobs_list):
    return torch.tensor(sum(-logprobs.sum().item() for logprobs in logprobs_list)), {}


def through_torch_tensor(data, logprobs_list):
    copies = [torch.tensor(logprobs.tolist(), requires_grad=True) for logprobs in logprobs_list]
    return sum(-copy.sum() for copy in copies), {}


def under_no_grad(data, logprobs_list):
    with torch.no_grad():
        return total(data, logprobs_list)


@pytest.mark.parametrize("loss", [detached, through_item, through_torch_tensor, under_no_grad])
def test_a_loss_that_does_not_depend_on_its_logprobs_is_an_error_that_says_so(
    loss: Any, training: TrainingClient, make_datums: MakeDatums, state_of: StateOf
) -> None:
    before = state_of(training)
    with pytest.raises(NonDifferentiableLossError) as caught:
        training.forward_backward_custom(make_datums(2), loss).result()
    message = str(caught.value)
    assert loss.__name__ in message
    assert "nothing would be learned" in message
    assert ".detach()" in message or "detach" in message
    assert state_of(training) == before


def test_a_registered_loss_that_detaches_is_caught_too(training: TrainingClient, make_datums: MakeDatums) -> None:
    def frozen(logprobs):
        """-logprobs, without a graph."""
        return -logprobs.detach()

    with pytest.raises(NonDifferentiableLossError, match="frozen: the loss does not depend on its logprobs"):
        training.forward_backward(make_datums(2), frozen).result()


# --- futures ----------------------------------------------------------------------------------------------------------


def fails(data, logprobs_list):
    raise ZeroDivisionError("the first mistake")


def wait_without_looking(future: Any) -> None:
    """`result()` and `exception()` would count as looking."""
    while not future.done():
        time.sleep(0.001)


def test_a_failure_that_nobody_looked_at_is_raised_by_the_next_call(
    training: TrainingClient, make_datums: MakeDatums
) -> None:
    future = training.forward_backward_custom(make_datums(2), fails)
    wait_without_looking(future)
    with pytest.raises(ZeroDivisionError, match="the first mistake"):
        training.optim_step(PARAMS)


def test_a_step_queued_behind_a_failed_call_does_not_step(
    training: TrainingClient, make_datums: MakeDatums, state_of: StateOf
) -> None:
    training.forward_backward(make_datums(2), "cross_entropy").result()
    before = state_of(training)
    failed = training.forward_backward_custom(make_datums(2), fails)
    try:
        step = training.optim_step(PARAMS)
    except ZeroDivisionError:  # the failure was there already: just as good
        step = failed
    with pytest.raises(ZeroDivisionError):
        step.result()
    assert failed.exception() is not None
    assert state_of(training) == before


def test_a_failure_that_goes_away_unseen_is_warned_about(make_datums: MakeDatums) -> None:
    kept: list[Any] = [lb.ServiceClient(device="cpu").create_lora_training_client("tiny", rank=4, seed=0)]
    kept.append(kept[0].forward_backward_custom(make_datums(2), fails))
    wait_without_looking(kept[1])

    def forget() -> None:
        kept.clear()
        gc.collect()

    with pytest.warns(UnseenFailureWarning, match="the first mistake"):
        forget()


def test_the_traceback_leads_into_the_users_function(training: TrainingClient, make_datums: MakeDatums) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        training.forward_backward_custom(make_datums(2), fails).result()
    assert caught.traceback[-1].name == "fails"


def test_a_call_from_inside_a_loss_is_an_error_and_no_deadlock(
    training: TrainingClient, make_datums: MakeDatums
) -> None:
    datums = make_datums(2)

    def asks_for_more(data, logprobs_list):
        training.forward(datums).result()
        return total(data, logprobs_list)

    with pytest.raises(WorkerError, match="inside an operation of the same service"):
        training.forward_backward_custom(datums, asks_for_more).result()


# --- diagnostics that come by themselves ------------------------------------------------------------------------------

ALWAYS = {"loss:sum", "response_tokens", "response_sequences", "datums", "datums_without_grad", "denominator"}
RATIO = {"ratio_mean", "ratio_max", "ratio_capped", "sampling_kl_k1", "sampling_kl_k3", "entropy_estimate"}


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("cross_entropy", {"nll"}),
        ("importance_sampling", RATIO),
        ("ppo", {*RATIO, "clip_fraction"}),
        ("grpo", {*RATIO, "clip_fraction", "ref_kl"}),
        ("dpo", {"accuracy", "margin"}),
        ("info_nce", {"in_batch_recall_at_1"}),
        pytest.param(total, {"nll"}, id="custom"),
    ],
)
def test_diagnostics_come_by_default(
    loss: Any, expected: set[str], training: TrainingClient, make_datums: MakeDatums
) -> None:
    datums = make_datums(4)
    metrics = training.forward_backward(datums, loss).result().metrics
    assert metrics.keys() >= ALWAYS | expected
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    weights = [value for d in datums for value in d.loss_fn_inputs["weights"].data]
    assert metrics["response_tokens"] == sum(value != 0 for value in weights)
    assert metrics["datums"] == 4
    step = training.optim_step(PARAMS).result().metrics
    assert step["grad_norm"] > 0
    assert step.keys() >= {"grad_norm", "grad_norm_clipped", "normalizer", "accumulated_calls"}


def test_the_denominator_is_what_the_loss_was_divided_by(training: TrainingClient, make_datums: MakeDatums) -> None:
    datums = make_datums(4)
    summed = training.forward(datums, "cross_entropy").result().metrics
    averaged = training.forward(datums, "cross_entropy", {"reduction": "token-mean"}).result().metrics
    weights = sum(value for d in datums for value in d.loss_fn_inputs["weights"].data)
    assert summed["denominator"] == 1.0
    assert averaged["denominator"] == pytest.approx(weights)
    assert averaged["loss:sum"] == pytest.approx(summed["loss:sum"] / weights, rel=1e-5)


@pytest.mark.parametrize("loss", ["cross_entropy", total], ids=["by name", "custom"])
def test_nll_is_the_mean_over_targets_of_a_weight_other_than_zero(loss: Any, training: TrainingClient) -> None:
    targets, weights = [[1, 2], [3, 4]], [[0.5, 0.0], [2.0, 1.0]]
    datum = lb.Datum(lb.ModelInput.from_ints([1, 2]), {"target_tokens": targets, "weights": weights})
    output = training.forward([datum], loss).result()
    logprobs = output.loss_fn_outputs[0]["logprobs"].data
    expected = -(logprobs[0] + logprobs[2] + logprobs[3]) / 3
    assert output.metrics["nll"] == pytest.approx(expected, rel=1e-6)
    assert training.forward_backward([datum], loss).result().metrics["nll"] == pytest.approx(expected, rel=1e-6)


def test_a_mixture_reports_one_denominator_a_part(training: TrainingClient, make_datums: MakeDatums) -> None:
    loss = lb.get_loss("cross_entropy") + 0.5 * lb.get_loss("dpo")
    metrics = training.forward_backward(make_datums(4), loss).result().metrics
    assert (metrics["denominator_0"], metrics["denominator_1"]) == (1.0, 2.0)
    assert {"cross_entropy/nll", "dpo/margin"} <= metrics.keys()


def test_a_metric_of_the_user_cannot_hide_one_of_the_trainer(training: TrainingClient, make_datums: MakeDatums) -> None:
    def named(data, logprobs_list):
        return total(data, logprobs_list)[0], {"loss:sum": -1.0, "mine": 2.0}

    metrics = training.forward_backward_custom(make_datums(2), named).result().metrics
    assert metrics["loss:sum"] > 0
    assert metrics["named/loss:sum"] == -1.0
    assert metrics["mine"] == 2.0


# --- datums that the loss ignores -------------------------------------------------------------------------------------


def only_the_first(data, logprobs_list):
    return -logprobs_list[0].sum(), {}


def test_a_datum_that_the_loss_ignores_gets_no_gradient_and_is_counted(
    training: TrainingClient, make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    datums = make_datums(3)
    metrics = training.forward_backward_custom(datums, only_the_first).result().metrics
    assert metrics["datums_without_grad"] == 2
    gradients = gradients_of(training)
    training.discard_gradients().result()
    training.forward_backward_custom(datums[:1], total).result()
    for name, gradient in gradients_of(training).items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_datum_whose_weights_are_all_zero_is_counted(training: TrainingClient) -> None:
    datums = [
        lb.datum_from_tokens_weights([1, 2, 3], [0.0, 1.0, 1.0]),
        lb.datum_from_tokens_weights([1, 2, 3], [0.0] * 3),
    ]
    metrics = training.forward_backward(datums, "cross_entropy").result().metrics
    assert metrics["datums_without_grad"] == 1
    assert metrics["response_sequences"] == 1


@pytest.mark.parametrize("reduction", ["sum", "token-mean"])
def test_a_batch_without_anything_to_learn_is_an_error(reduction: str, training: TrainingClient) -> None:
    datum = lb.datum_from_tokens_weights([1, 2, 3], [0.0] * 3)
    with pytest.raises(EmptyLossError, match="every weight of all 1 datums is 0"):
        training.forward_backward([datum], "cross_entropy", {"reduction": reduction}).result()


def test_no_datums_are_an_error(training: TrainingClient) -> None:
    for call in (
        lambda: training.forward_backward([], "cross_entropy"),
        lambda: training.forward_backward_custom([], total),
        lambda: training.forward([]),
    ):
        with pytest.raises(EmptyLossError, match="no datums"):
            call().result()


# --- the contract of custom functions ---------------------------------------------------------------------------------


def first(logprobs_list):
    return -logprobs_list[0].sum()


def changed_as_data(data, logprobs_list):
    logprobs_list[1].data.mul_(2)
    return total(data, logprobs_list)


def changed_as_numpy(data, logprobs_list):
    values = logprobs_list[1].detach().numpy()
    values -= values.mean()
    return total(data, logprobs_list)


def drops_an_input(data, logprobs_list):
    data[0].loss_fn_inputs.pop("weights")
    return total(data, logprobs_list)


CONTRACT: dict[str, tuple[Any, str]] = {
    "a vector as loss": (
        lambda data, lps: (-lps[0], {}),
        r"a scalar tensor as its loss, not a tensor of shape \[\d+\]",
    ),
    "a float as loss": (lambda data, lps: (1.0, {}), "a scalar tensor as its loss, not a float"),
    "no tuple": (lambda data, lps: first(lps), r"must return \(loss, metrics\).*`return loss, \{\}`"),
    "three results": (lambda data, lps: (first(lps), {}, {}), r"must return \(loss, metrics\)"),
    "metrics that are no dict": (lambda data, lps: (first(lps), 3.0), "metrics as a dict, not float"),
    "a metric that is no number": (lambda data, lps: (first(lps), {"x": "high"}), "metric 'x' must be a number"),
    "a metric that is a vector": (lambda data, lps: (first(lps), {"x": torch.ones(2)}), "metric 'x' must be a number"),
    "logprobs changed in place": (changed_as_data, "changed the logprobs of datum 1 in place; clone"),
    "logprobs changed through numpy": (changed_as_numpy, "changed the logprobs of datum 1 in place; clone"),
    "inputs changed in place": (drops_an_input, "changed loss_fn_inputs of datum 0"),
}


@pytest.mark.parametrize(("function", "sentence"), CONTRACT.values(), ids=CONTRACT.keys())
def test_a_custom_function_that_breaks_its_contract_is_told_how_to_mend_it(
    function: Any, sentence: str, training: TrainingClient, make_datums: MakeDatums, state_of: StateOf
) -> None:
    datums = make_datums(2)
    before = state_of(training)
    with pytest.raises(LossContractError, match=sentence):
        training.forward_backward_custom(datums, function).result()
    assert state_of(training) == before
    training.forward_backward(make_datums(2), "cross_entropy").result()


def test_a_function_of_three_arguments_is_refused_at_once(training: TrainingClient, make_datums: MakeDatums) -> None:
    def three(data, logprobs_list, advantages):
        return total(data, logprobs_list)

    with pytest.raises(LossContractError, match=r"takes two arguments.*functools\.partial"):
        training.forward_backward_custom(make_datums(2), three)


def test_a_metric_may_be_nan_and_a_tensor_of_one_number(training: TrainingClient, make_datums: MakeDatums) -> None:
    def with_metrics(data, logprobs_list):
        return total(data, logprobs_list)[0], {"undefined": float("nan"), "tensor": torch.tensor(2.5), "count": 3}

    metrics = training.forward_backward_custom(make_datums(2), with_metrics).result().metrics
    assert math.isnan(metrics["undefined"])
    assert (metrics["tensor"], metrics["count"]) == (2.5, 3.0)


def test_what_is_returned_to_the_user_is_what_the_model_said(training: TrainingClient, make_datums: MakeDatums) -> None:
    (datum,) = make_datums(1)
    seen = []

    def keeps(data, logprobs_list):
        seen.append(logprobs_list[0].detach().clone())
        assert logprobs_list[0].dtype == torch.float32
        assert logprobs_list[0].device.type == "cpu"
        return total(data, logprobs_list)

    output = training.forward_backward_custom([datum], keeps).result()
    assert torch.equal(output.loss_fn_outputs[0]["logprobs"].to_torch(), seen[0])
    assert len(seen[0]) == datum.model_input.length, "every position, also those of weight 0"


# --- steps ------------------------------------------------------------------------------------------------------------


def test_a_step_without_gradients_is_an_error_and_no_silent_decay(training: TrainingClient, state_of: StateOf) -> None:
    before = state_of(training)
    with pytest.raises(OptimizerError, match=r"nothing to apply.*forward_backward first"):
        training.optim_step(lb.AdamParams(weight_decay=0.1)).result()
    assert state_of(training) == before


def test_a_step_uses_up_what_was_accumulated(training: TrainingClient, make_datums: MakeDatums) -> None:
    training.forward_backward(make_datums(2), "cross_entropy").result()
    training.optim_step(PARAMS).result()
    with pytest.raises(OptimizerError, match="nothing to apply"):
        training.optim_step(PARAMS).result()


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"learning_rate": -1e-3},
        {"beta1": 1.0},
        {"beta2": 1.5},
        {"eps": 0.0},
        {"weight_decay": -0.1},
        {"grad_clip_norm": -1.0},
    ],
    ids=str,
)
def test_impossible_numbers_are_refused_and_the_gradient_stays(
    wrong: dict[str, float], training: TrainingClient, make_datums: MakeDatums, state_of: StateOf
) -> None:
    training.forward_backward(make_datums(2), "cross_entropy").result()
    before = state_of(training)
    (name,) = wrong
    with pytest.raises(OptimizerError, match=rf"AdamParams.{name} is"):
        training.optim_step(lb.AdamParams(**wrong)).result()
    assert state_of(training) == before
    training.optim_step(PARAMS).result()


def test_a_gradient_of_nan_is_refused_by_the_step_and_named(
    training: TrainingClient, make_datums: MakeDatums, state_of: StateOf
) -> None:
    training.forward_backward(make_datums(2), "cross_entropy").result()
    name, parameter = next((n, p) for n, p in training.local.model.trainable().items() if "lora_B" in n)
    assert parameter.grad is not None
    parameter.grad.view(-1)[0] = float("nan")
    before = state_of(training)
    with pytest.raises(NonFiniteGradientError, match="Nothing was changed") as caught:
        training.optim_step(PARAMS).result()
    assert repr(name) in str(caught.value)
    assert state_of(training) == before
    training.discard_gradients().result()
    training.forward_backward(make_datums(2), "cross_entropy").result()
    training.optim_step(PARAMS).result()


@pytest.mark.parametrize("normalization", ["num_loss_tokens", "num_sequences"])
@pytest.mark.parametrize("loss", ["grpo", "dpo", "info_nce"])
def test_a_mean_is_not_divided_a_second_time(
    loss: str, normalization: Any, training: TrainingClient, make_datums: MakeDatums, state_of: StateOf
) -> None:
    training.forward_backward(make_datums(2), "cross_entropy").result()
    training.forward_backward(make_datums(2), loss).result()
    before = state_of(training)
    with pytest.raises(OptimizerError, match=rf"divide twice: {loss} was reduced to a mean.*reduction='sum'"):
        training.optim_step(PARAMS, grad_accumulation_normalization=normalization).result()
    assert state_of(training) == before
    training.optim_step(PARAMS).result()


def test_an_unknown_normalization_is_refused(training: TrainingClient, make_datums: MakeDatums) -> None:
    training.forward_backward(make_datums(2), "cross_entropy").result()
    with pytest.raises(OptimizerError, match="'none', 'num_loss_tokens' or 'num_sequences', not 'tokens'"):
        training.optim_step(PARAMS, grad_accumulation_normalization="tokens").result()  # type: ignore[arg-type]
