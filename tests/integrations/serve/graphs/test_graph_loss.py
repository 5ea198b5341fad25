"""A graph is a loss of `forward_backward_custom`: one forward and one backward, with the numbers of the function it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook.datums.errors import LossContractError, MissingInput, NonFiniteLossError
from lossbook.integrations import tinker
from lossbook.integrations.serve.graphs import GraphLoss, run_graph
from lossbook.integrations.serve.refusals import Failed
from lossbook.integrations.serve.settings import Limits
from lossbook.integrations.tinker import settings

from .encoding import read
from .expressions import EXPRESSIONS, nll, ppo

STILL = tinker.AdamParams(learning_rate=0.0)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tinker.ServiceClient]:
    before = settings.current().root
    settings.configure(root=tmp_path_factory.mktemp("door"), device="cpu")
    with tinker.ServiceClient() as service:
        yield service
    settings.configure(root=before)


@pytest.fixture(scope="module")
def training(service: tinker.ServiceClient) -> tinker.TrainingClient:
    return service.create_lora_training_client("tiny", rank=4, seed=0).result()


def loss_of(function: Callable[..., Any], ranks: dict[str, int], session_id: str = "s", **limits: Any) -> GraphLoss:
    graph = read(function, ranks)
    return GraphLoss(function.__name__, graph.inputs, session_id, graph, Limits.model_validate(limits))


def session_of(training: tinker.TrainingClient) -> str:
    return training.model_id.split(":")[0]


def datum(*weights: float, **inputs: Any) -> tinker.Datum:
    tokens = list(range(1, len(weights) + 1))
    carried = {"target_tokens": [one + 1 for one in tokens], "weights": list(weights), "w": list(weights), **inputs}
    return tinker.Datum(tinker.ModelInput.from_ints(tokens), carried)


def rollout(*advantages: float) -> tinker.Datum:
    near = [-5.5 + 0.1 * i for i in range(len(advantages))]
    inputs = {"advantages": list(advantages), "a": list(advantages), "logprobs": near, "q": near}
    return datum(*[1.0] * len(advantages), **inputs)


def norm_after(training: tinker.TrainingClient) -> float:
    metrics = training.optim_step(STILL).result().metrics
    assert metrics is not None
    return metrics["grad_norm"]


@pytest.mark.parametrize("name", ["cross_entropy", "ppo"])
def test_a_graph_trains_as_the_built_in_loss_of_its_formula(training: tinker.TrainingClient, name: str) -> None:
    function, data = {
        "cross_entropy": (nll, [datum(0.0, 1.0, 2.0), datum(1.0, 0.5)]),
        "ppo": (ppo, [rollout(1.0, -1.0, 0.5), rollout(2.0, -0.5)]),
    }[name]
    loss = loss_of(function, EXPRESSIONS[function.__name__][1], session_of(training))
    by_graph = training.forward_backward_custom(data, loss).result()
    norm = norm_after(training)
    built_in = {"cross_entropy": "cross_entropy", "ppo": "ppo"}[name]
    by_name = training.forward_backward(data, built_in).result()
    assert by_graph.metrics["loss:sum"] == pytest.approx(by_name.metrics["loss:sum"], rel=1e-6)
    assert norm_after(training) == pytest.approx(norm, rel=1e-5)
    for one, other in zip(by_graph.loss_fn_outputs, by_name.loss_fn_outputs, strict=True):
        torch.testing.assert_close(one["logprobs"].to_torch(), other["logprobs"].to_torch())
    assert {key for key in by_graph.metrics if key.startswith("custom/")} == set(loss.graph.metrics)


def test_metrics_are_sums_or_means_over_datums_as_their_names_say() -> None:
    def counted(logprobs, w):
        return (logprobs * w).sum(), {"custom/w:sum": w.sum(), "custom/w/each:mean": w.sum()}

    loss = loss_of(counted, {"logprobs": 1, "w": 1})
    rows = [torch.zeros(3, requires_grad=True), torch.zeros(2, requires_grad=True)]
    total, metrics = loss([datum(0.0, 1.0, 2.0), datum(1.0, 0.5)], rows)
    assert metrics == {"custom/w:sum": 4.5, "custom/w/each:mean": 2.25}
    (2 * total).backward()
    assert [row.grad.tolist() for row in rows if row.grad is not None] == [[0.0, 2.0, 4.0], [2.0, 1.0]]


def test_without_gradients_only_values_are_computed() -> None:
    loss = loss_of(nll, {"logprobs": 1, "w": 1})
    with torch.no_grad():
        total, metrics = loss([datum(1.0, 1.0)], [torch.full((2,), -0.5)])
    assert (float(total), metrics["custom/nll:sum"], total.requires_grad) == (1.0, 1.0, False)


def third_of(training: tinker.TrainingClient) -> GraphLoss:
    """Reads the third position, which short data do not have."""
    return loss_of(lambda logprobs: (logprobs[2] * 2, {}), {"logprobs": 1}, session_of(training))


def test_data_that_do_not_fit_are_named(training: tinker.TrainingClient) -> None:
    loss = loss_of(nll, {"logprobs": 1, "w": 1}, session_of(training))
    carried: dict[str, Any] = {"target_tokens": [2, 3]}
    without = tinker.Datum(tinker.ModelInput.from_ints([1, 2]), carried)
    with pytest.raises(MissingInput, match="'w', which datum 1 of 2"):
        training.forward_backward_custom([datum(1.0, 1.0), without], loss)
    with pytest.raises(LossContractError, match="session"):
        training.forward_backward_custom([datum(1.0, 1.0)], loss_of(nll, {"logprobs": 1, "w": 1}, "other"))
    with pytest.raises(tinker.RequestFailedError, match=r"datum 1 of 2: node getitem: .*out of bounds") as raised:
        training.forward_backward_custom([datum(1.0, 1.0, 1.0), datum(1.0, 1.0)], third_of(training)).result()
    assert raised.value.category == tinker.types.RequestErrorCategory.User


def test_a_failed_call_leaves_the_gradient_and_the_client_as_they_were(training: tinker.TrainingClient) -> None:
    loss = loss_of(nll, {"logprobs": 1, "w": 1}, session_of(training))
    data = [datum(1.0, 1.0)]
    training.forward_backward_custom(data, loss).result()
    expected = norm_after(training)
    training.forward_backward_custom(data, loss).result()
    with pytest.raises(tinker.RequestFailedError):
        training.forward_backward_custom(data, third_of(training)).result()
    assert norm_after(training) == pytest.approx(expected, rel=1e-6)


def infinite(logprobs: Tensor, w: Tensor) -> Any:
    return (logprobs / w).sum(), {}


def steep(logprobs: Tensor, w: Tensor) -> Any:
    return ((logprobs * w).square().sum()).sqrt(), {}


@pytest.mark.parametrize(("function", "what"), [(infinite, "loss"), (steep, "gradient")])
def test_a_loss_or_gradient_that_is_not_finite_is_refused_with_its_datum(
    function: Callable[..., Any], what: str
) -> None:
    loss = loss_of(function, {"logprobs": 1, "w": 1})
    rows = [torch.full((2,), -1.0, requires_grad=True) for _ in range(2)]
    with pytest.raises(NonFiniteLossError, match=f"the {what} of datum 1 of 2"):
        loss([datum(1.0, 1.0), datum(0.0, 0.0)], rows)


def test_places_outside_are_refused_before_they_are_read() -> None:
    def taken(logprobs, i):
        return logprobs[i].sum() + logprobs.gather(0, i).sum(), {}

    graph = read(taken, {"logprobs": 1, "i": 1})
    leaf = torch.zeros(3, requires_grad=True)
    run_graph(graph, leaf, [torch.tensor([0, -1]).abs()])
    for far in (3, -4, 10**12):
        with pytest.raises(Failed, match="is not in a dimension of size 3"):
            run_graph(graph, leaf, [torch.tensor([far])])


def test_a_broadcast_that_data_make_too_large_is_refused_before_it_is_made() -> None:
    def squared(logprobs):
        return (logprobs.unsqueeze(1) - logprobs).abs().mean(), {}

    graph = read(squared, {"logprobs": 1})
    small = Limits.model_validate({"graph_elements": 10_000})
    run_graph(graph, torch.zeros(50, requires_grad=True), [], small)
    with pytest.raises(Failed, match="more than 10000 numbers for one datum, the limit graph_elements"):
        run_graph(graph, torch.zeros(101, requires_grad=True), [], small)
    with pytest.raises(Failed, match="the limit graph_elements"):
        run_graph(graph, torch.zeros(10**6, requires_grad=True), [])


def test_a_graph_that_takes_too_long_is_stopped() -> None:
    loss = loss_of(nll, {"logprobs": 1, "w": 1}, graph_seconds=1e-9)
    with pytest.raises(LossContractError, match="the limit graph_seconds"):
        loss([datum(1.0, 1.0)], [torch.zeros(2, requires_grad=True)])


def test_every_tensor_is_on_the_device_of_the_logprobs_whatever_the_graph_names() -> None:
    def moved(logprobs):
        zeros = torch.zeros(logprobs.shape[0], device="cuda:7")
        return (logprobs.to("cpu") + zeros.to(logprobs.device)).sum(), {}

    graph = read(lambda logprobs: (logprobs.to(torch.device("cuda:3")).sum(), {}), {"logprobs": 1})
    loss, _ = run_graph(graph, torch.zeros(2, requires_grad=True), [])
    assert loss.device.type == "cpu"
    with pytest.raises(Exception, match="not a string"):
        read(moved, {"logprobs": 1})


def test_a_number_declared_as_rank_0_may_come_as_one_element_which_the_wire_cannot_tell_apart(
    training: tinker.TrainingClient,
) -> None:
    def scaled(logprobs: Tensor, scale: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return -(logprobs * scale).sum(), {}

    loss = loss_of(scaled, {"logprobs": 1, "scale": 0}, session_of(training))
    values = [
        training.forward_backward_custom([datum(1.0, scale=scale)], loss).result().metrics["loss:sum"]
        for scale in (torch.tensor(0.5), torch.tensor([0.5]))
    ]
    training.optim_step(STILL).result()
    assert values[0] == values[1] > 0
