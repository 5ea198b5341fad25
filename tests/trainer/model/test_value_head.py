"""The value head: its gradient is that of the plain computation, and it is trained, saved, resumed and rolled back as any weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lossbook as lb
from lossbook.datums.errors import CheckpointError, ModelError, NonFiniteLossError
from lossbook.trainer.checkpoint.folder import read_checkpoint, write_checkpoint
from lossbook.trainer.clients.training import TrainingClient
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.value_head import add_value_head, values_of

StateOf = Callable[[TrainingClient], dict[str, Any]]
GradientsOf = Callable[[TrainingClient], dict[str, Tensor]]
MakeDatums = Callable[..., list[lb.Datum]]
PARAMS = lb.AdamParams(learning_rate=1e-2)
CREATE: dict[str, Callable[..., TrainingClient]] = {
    "LoRA": lambda service, **more: service.create_lora_training_client("tiny", rank=4, seed=0, **more),
    "all weights": lambda service, **more: service.create_training_client("tiny", **more),
}
BOTH = pytest.mark.parametrize("create", CREATE.values(), ids=CREATE.keys())


@pytest.fixture
def datums(make_datums: MakeDatums) -> list[lb.Datum]:
    """Six datums with what a critic reads beside what a policy reads; masked entries are NaN."""
    rng = np.random.default_rng(7)
    datums = []
    for datum in make_datums(6):
        masked = datum.loss_fn_inputs["weights"].to_numpy() == 0
        critic = {key: np.where(masked, np.nan, rng.normal(0, 1, len(masked))) for key in ("old_values", "returns")}
        datums.append(lb.Datum(datum.model_input, {**datum.loss_fn_inputs, **critic}))
    return datums


def with_random_head(client: TrainingClient) -> TrainingClient:
    """The same client, its head no longer at zero, so that the weights below it get a gradient too."""
    head = client.local.model.value_head
    assert head is not None
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-0.2, 0.3, head.weight.numel()).view_as(head.weight))
        head.bias.fill_(0.125)
    return client


@BOTH
@pytest.mark.parametrize(
    "settings", [{}, {"tokens_per_micro_batch": 1}, {"batching": "packed", "tokens_per_micro_batch": 24}], ids=str
)
def test_the_gradient_is_that_of_a_linear_map_of_the_hidden_states(
    create: Callable[..., TrainingClient], settings: dict[str, Any], datums: list[lb.Datum], gradients_of: GradientsOf
) -> None:
    client = with_random_head(create(lb.ServiceClient(device="cpu", dtype=torch.float64, **settings), value_head=True))
    output = client.forward_backward(datums, "value_mse").result()
    gradients, model = gradients_of(client), client.local.model
    assert model.value_head is not None
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for datum, own in zip(datums, output.loss_fn_outputs, strict=True):
        hidden = model.backbone(torch.tensor([datum.model_input.to_ints()])).last_hidden_state[0]
        weights, returns = (datum.loss_fn_inputs[key].to_torch().double() for key in ("weights", "returns"))
        values = hidden @ model.value_head.weight[0] + model.value_head.bias
        error = torch.where(weights != 0, values - returns, 0)
        total, count = total + (weights * 0.5 * error.square()).sum(), count + float(weights.sum())
        torch.testing.assert_close(own["values"].to_torch(), torch.where(weights != 0, values, 0).float())
    parameters = model.trainable()
    slopes = torch.autograd.grad(total / count, list(parameters.values()), allow_unused=True)
    assert output.metrics["loss:sum"] == pytest.approx(float(total.detach()) / count, rel=1e-9)
    assert {"value_head.weight", "value_head.bias"} <= parameters.keys()
    assert sum(slope is not None and bool(slope.any()) for slope in slopes) > 2
    for name, slope in zip(parameters, slopes, strict=True):
        expected = torch.zeros_like(gradients[name]) if slope is None else slope
        torch.testing.assert_close(gradients[name], expected, rtol=1e-5, atol=1e-9)


def test_policy_and_critic_share_one_forward(datums: list[lb.Datum], gradients_of: GradientsOf) -> None:
    def gradients(loss: Any, **settings: Any) -> dict[str, Tensor]:
        service = lb.ServiceClient(device="cpu", dtype=torch.float64, **settings)
        client = with_random_head(service.create_training_client("tiny", value_head=True))
        assert client.forward_backward(datums, loss).result().metrics["forward_passes"] == 1
        return gradients_of(client)

    policy, critic = gradients("ppo"), gradients("value_clip")
    both = gradients(lb.get_loss("ppo") + 0.5 * lb.get_loss("value_clip"), tokens_per_micro_batch=24)
    for name, gradient in both.items():
        expected = policy[name] + 0.5 * critic[name]
        assert float((gradient - expected).norm()) <= 1e-6 * float(expected.norm())


@BOTH
def test_values_are_learned(
    create: Callable[..., TrainingClient], service: lb.ServiceClient, datums: list[lb.Datum]
) -> None:
    client = create(service, value_head=True)
    losses = []
    for _ in range(30):
        losses.append(client.forward_backward(datums, "value_mse").result().metrics["loss:sum"])
        client.optim_step(PARAMS).result()
    weights = np.concatenate([d.loss_fn_inputs["weights"].to_numpy() for d in datums])
    returns = np.concatenate([d.loss_fn_inputs["returns"].to_numpy() for d in datums])
    assert losses[0] == pytest.approx(float(np.nansum(weights * returns**2) / weights.sum() / 2), rel=1e-5)  # all 0
    assert losses[-1] < 0.3 * losses[0]


@BOTH
def test_a_resumed_critic_is_the_uninterrupted_one_bit_for_bit(
    create: Callable[..., TrainingClient], service: lb.ServiceClient, datums: list[lb.Datum], state_of: StateOf
) -> None:
    def step(client: TrainingClient) -> None:
        client.forward_backward(datums, "value_clip").result()
        client.optim_step(PARAMS).result()

    client = create(service, value_head=True)
    step(client)
    client.forward_backward(datums, "value_mse").result()
    path = client.save_state("here").result().path
    resumed = service.create_training_client_from_state_with_optimizer(path)
    assert state_of(resumed) == state_of(client)
    for one in (client, resumed):
        step(one)
    assert state_of(resumed) == state_of(client)


@BOTH
def test_a_critic_is_not_loaded_into_a_model_without_a_head_nor_the_other_way_round(
    create: Callable[..., TrainingClient], service: lb.ServiceClient, state_of: StateOf
) -> None:
    clients = {"with": create(service, value_head=True), "without": create(service)}
    paths = {name: client.save_state(name).result().path for name, client in clients.items()}
    for name, other in (("with", "without"), ("without", "with")):
        before = state_of(clients[name])
        with pytest.raises(CheckpointError, match="was saved with value_head="):
            clients[name].load_state(paths[other]).result()
        assert state_of(clients[name]) == before


def test_a_checkpoint_from_before_there_were_value_heads_has_none(service: lb.ServiceClient) -> None:
    client = service.create_training_client("tiny")
    new = read_checkpoint(Path(client.save_state("new").result().path))
    old = {key: value for key, value in new.manifest.items() if key != "value_head"}
    path = write_checkpoint(new.path.parent, "old", tensors=new.tensors, manifest=old)
    resumed = service.create_training_client_from_state_with_optimizer(str(path))
    assert resumed.local.model.value_head is None


@BOTH
def test_a_failed_call_leaves_the_head_as_it_was(
    create: Callable[..., TrainingClient], service: lb.ServiceClient, datums: list[lb.Datum], state_of: StateOf
) -> None:
    def broken(values):
        """Not finite where values are 0: at first all of them."""
        return values / values

    client = create(service, value_head=True)
    client.forward_backward(datums, "value_mse").result()
    before = state_of(client)
    with pytest.raises(
        NonFiniteLossError, match=r"broken: the gradient of the loss is not finite at position \d+ of datum"
    ):
        client.forward_backward(datums, broken).result()
    assert state_of(client) == before


@BOTH
def test_without_a_head_a_loss_over_values_is_refused_before_any_forward(
    create: Callable[..., TrainingClient],
    service: lb.ServiceClient,
    datums: list[lb.Datum],
    state_of: StateOf,
) -> None:
    client = create(service)
    before = state_of(client)
    client.local.model.backbone.register_forward_pre_hook(lambda *_: pytest.fail("a forward ran"))
    for call in (client.forward_backward, client.forward):
        with pytest.raises(ModelError, match=r"tiny has no value head.*value_head=True"):
            call(datums, "value_clip").result()
    assert state_of(client) == before


@BOTH
def test_a_sampler_of_a_critics_weights_says_what_the_same_policy_says(
    create: Callable[..., TrainingClient], service: lb.ServiceClient, datums: list[lb.Datum]
) -> None:
    client = create(service, value_head=True)
    client.forward_backward(datums, lb.get_loss("ppo") + lb.get_loss("value_clip")).result()
    client.optim_step(PARAMS).result()
    path = client.save_weights_for_sampler("weights").result().path
    prompt = lb.ModelInput.from_ints([1, 2, 3])
    now = client.save_weights_and_get_sampling_client()
    later = service.create_sampling_client(model_path=path)
    logprobs = [sampler.compute_logprobs(prompt).result() for sampler in (now, later)]
    assert logprobs[0] == logprobs[1]


@pytest.mark.parametrize(
    ("base", "dtype", "expected"),
    [
        ("tiny", torch.bfloat16, torch.float32),
        ("tiny", torch.float64, torch.float64),
        ("tiny-encoder", torch.float32, torch.float32),
    ],
)
def test_values_start_at_0_in_full_precision_of_any_model(base: str, dtype: torch.dtype, expected: torch.dtype) -> None:
    model = add_value_head(load_model(base, device="cpu", dtype=dtype))
    hidden = torch.ones(3, 64, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = values_of(model, hidden)
    assert values.dtype == expected
    assert values.tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(ModelError, match="has a value head already"):
        add_value_head(model)


def test_values_need_no_targets(service: lb.ServiceClient) -> None:
    client = with_random_head(service.create_training_client("tiny-encoder", value_head=True))
    datum = lb.Datum(lb.ModelInput.from_ints([5, 6, 7]), {"returns": [1.0, 0.0, 0.0], "weights": [1.0, 0.0, 2.0]})
    output = client.forward_backward([datum], "value_huber").result()
    assert output.loss_fn_outputs[0]["values"].shape == [3]


def test_an_encoders_values_depend_on_all_its_tokens_also_after_the_last_weighted_one(
    service: lb.ServiceClient,
) -> None:
    client = with_random_head(service.create_training_client("tiny-encoder", value_head=True))
    weights = [0.0, 1.0, 1.0, 0.0, 0.0]
    inputs = {"target_tokens": [11, 12, 13, 14, 15], "weights": weights, "returns": [1.0] * 5, "old_values": [0.0] * 5}
    datum = lb.Datum(lb.ModelInput.from_ints([10, 11, 12, 13, 14]), inputs)
    everywhere, trained = (
        call([datum], "value_mse").result().loss_fn_outputs[0]["values"].to_numpy()
        for call in (client.forward, client.forward_backward)
    )
    np.testing.assert_allclose(trained[1:3], everywhere[1:3], rtol=1e-5)
    assert trained.tolist()[3:] == [0.0, 0.0], "not computed"


def test_a_value_head_leaves_the_scripts_random_state_alone() -> None:
    service = lb.ServiceClient(device="cpu")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    service.create_lora_training_client("tiny", rank=2, seed=0, value_head=True)
    service.create_training_client("tiny", value_head=True)
    assert torch.equal(torch.get_rng_state(), before)
