"""Parameters that a loss holds itself: their gradients are those of `loss.backward()`, and come only with a call that succeeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lossbook as lb
from lossbook.datums.errors import LossbookError, LossContractError, NonFiniteLossError
from lossbook.trainer.clients.training import TrainingClient

MakeDatums = Callable[..., list[lb.Datum]]


class Tempered(nn.Module):
    """-logprobs / temperature, where the temperature is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(0.5))
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(self, logprobs: Tensor, *, scale: float = 1.0) -> Tensor:
        return -scale * logprobs / self.log_temperature.exp() + self.bias.square().sum()


class TemperedList(Tempered):
    """The same in the hosted APIs' form, over every position."""

    def forward(self, data: Any, logprobs_list: list[Tensor]) -> Any:  # type: ignore[override]
        total = torch.stack([x.sum() for x in logprobs_list]).sum()
        return -total / self.log_temperature.exp(), {"temperature": float(self.log_temperature.detach().exp())}


@pytest.mark.parametrize("tokens", [None, 16])
def test_a_modules_parameters_get_the_gradients_of_the_whole_call(
    service: lb.ServiceClient, make_datums: MakeDatums, tokens: int | None
) -> None:
    service = lb.ServiceClient(device="cpu", tokens_per_micro_batch=tokens)
    training = service.create_lora_training_client("tiny", rank=4, seed=0)
    loss, data = Tempered(), make_datums(6)
    before = training.forward(data, "cross_entropy").result().metrics["loss:sum"]
    output = training.forward_backward(data, loss).result()
    assert output.metrics["loss:sum"] == pytest.approx(before / math.exp(0.5), rel=1e-5)
    # d/dlog t of L / t is -L / t.
    assert float(loss.log_temperature.grad) == pytest.approx(-before / math.exp(0.5), rel=1e-5)
    assert output.metrics["micro_batches"] == (
        1 if tokens is None else 6 if tokens == 1 else output.metrics["micro_batches"]
    )
    training.forward_backward(data, loss).result()  # gradients accumulate, as with backward()
    assert float(loss.log_temperature.grad) == pytest.approx(-2 * before / math.exp(0.5), rel=1e-5)


@pytest.mark.parametrize("kept", [None, 0])
def test_a_custom_functions_parameters_are_those_of_backward(make_datums: MakeDatums, kept: int | None) -> None:
    service = lb.ServiceClient(device="cpu", tokens_per_micro_batch=16, kept_graph_tokens=kept)
    training = service.create_lora_training_client("tiny", rank=4, seed=0)
    loss, data = TemperedList(), make_datums(4)
    rows = [one["logprobs"].to_torch() for one in training.forward(data).result().loss_fn_outputs]
    copy = TemperedList()
    copy(data, rows)[0].backward()
    training.forward_backward_custom(data, loss).result()
    assert float(loss.log_temperature.grad) == pytest.approx(float(copy.log_temperature.grad), rel=1e-5)
    assert loss.bias.grad is None  # it is not used


def test_a_module_may_be_registered_and_trained(training: TrainingClient, make_datums: MakeDatums) -> None:
    module = Tempered()
    assert lb.register_loss("tempered", per="token", reduction="token-mean")(module) is module
    try:
        assert lb.get_loss("tempered", scale=2.0).settings == {"scale": 2.0}
        assert lb.get_loss(module).name == "tempered"
        step = torch.optim.SGD(module.parameters(), lr=0.1)
        data = make_datums(4)
        values = []
        for _ in range(3):
            step.zero_grad()
            values.append(training.forward_backward(data, "tempered").result().metrics["loss:sum"])
            step.step()
        assert values[0] > values[1] > values[2]  # a higher temperature lowers it
        mixed = lb.get_loss("tempered") + lb.get_loss("cross_entropy", reduction="token-mean")
        step.zero_grad()
        training.forward_backward(data, mixed).result()
        assert float(module.log_temperature.grad) < 0
    finally:
        lb.unregister_loss("tempered")


def test_a_failed_call_leaves_the_losss_own_gradients_as_they_were(
    training: TrainingClient, make_datums: MakeDatums, state_of: Any
) -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    data = make_datums(4)

    def loss(data: Any, logprobs_list: Any) -> Any:
        return -weight * sum(x.sum() for x in logprobs_list), {}

    training.forward_backward_custom(data, loss).result()
    before, state = weight.grad.clone(), state_of(training)

    def infinite_slope(data: Any, logprobs_list: Any) -> Any:
        return loss(data, logprobs_list)[0] + (weight - 1).sqrt() * 0 + (weight - 1).abs().sqrt(), {}

    with pytest.raises(NonFiniteLossError, match=r"the gradient of its own parameter of shape \[\] is not finite"):
        training.forward_backward_custom(data, infinite_slope).result()

    def metric_of_no_number(data: Any, logprobs_list: Any) -> Any:
        return loss(data, logprobs_list)[0], {"odd": "text"}

    with pytest.raises(LossContractError):
        training.forward_backward_custom(data, metric_of_no_number).result()
    assert torch.equal(weight.grad, before)
    assert state_of(training) == state


def test_a_class_or_an_unknown_output_is_refused(training: TrainingClient, make_datums: MakeDatums) -> None:
    with pytest.raises(LossContractError, match=r"Tempered is a class; give an instance of it, Tempered\(\.\.\.\)"):
        lb.get_loss(Tempered)
    for output in ("anything", "logits", "embedding_", None):
        with pytest.raises(LossbookError, match="is none of 'logprobs', 'embedding', 'embeddings'"):
            training.forward_backward_custom(make_datums(2), TemperedList(), output=output)  # type: ignore[arg-type]


def test_a_trace_does_not_freeze_a_parameter() -> None:
    with pytest.raises(LossbookError, match="it holds a parameter, which a graph would keep at its present value"):
        lb.get_loss(Tempered()).trace()
