"""The training client: what it trains, what it takes, what it says at once, and in which order calls run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import tinker
import torch
from torch import Tensor

import lossbook as lb
from lossbook.datums.errors import (
    DtypeError,
    LossConfigError,
    LossContractError,
    ModelError,
    OptimizerError,
    UnknownLossError,
)
from lossbook.trainer.clients.training import TrainingClient

MakeDatums = Callable[..., list[lb.Datum]]
StateOf = Callable[[TrainingClient], dict[str, Any]]
GradientsOf = Callable[[TrainingClient], dict[str, Tensor]]
PARAMS = lb.AdamParams(learning_rate=1e-2)


def all_parameters(client: TrainingClient) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in client.local.model.module.named_parameters()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def weighted_sum(data, logprobs_list):
    weights = [datum.loss_fn_inputs["weights"].to_torch() for datum in data]
    return -torch.dot(torch.cat(weights), torch.cat(logprobs_list)), {}


# --- what is trained --------------------------------------------------------------------------------------------------


def test_lora_trains_its_adapters_and_leaves_the_base_weights_alone(
    training: TrainingClient, make_datums: MakeDatums
) -> None:
    before = all_parameters(training)
    for _ in range(2):  # B is zero at first, so A moves from the second step on
        training.forward_backward(make_datums(4), "cross_entropy").result()
        training.optim_step(PARAMS).result()
    moved = changed(before, all_parameters(training))
    assert moved == {name for name in before if "lora_" in name}


def test_all_weights_are_trained_when_all_are_asked_for(service: lb.ServiceClient, make_datums: MakeDatums) -> None:
    client = service.create_training_client("tiny")
    before = all_parameters(client)
    client.forward_backward(make_datums(6), "cross_entropy").result()
    step = client.optim_step(PARAMS).result().metrics
    assert changed(before, all_parameters(client)) == set(before)
    assert step["parameters_updated"] == client.get_info().trainable_parameters


@pytest.mark.parametrize("create", ["create_training_client", "create_lora_training_client"])
def test_an_encoder_learns_from_its_embeddings(create: str, service: lb.ServiceClient) -> None:
    client = getattr(service, create)("tiny-encoder", **({"rank": 4, "seed": 0} if "lora" in create else {}))
    encode = client.get_tokenizer().encode
    texts = ["one fish", "two fish", "red bird", "1 fish", "2 fish", "a red bird"]
    datums = [lb.Datum(lb.ModelInput.from_ints(encode(text))) for text in texts]
    losses = []
    for _ in range(8):
        output = client.forward_backward(datums, "info_nce", {"temperature": 0.1}).result()
        client.optim_step(lb.AdamParams(learning_rate=3e-3)).result()
        losses.append(output.metrics["loss:sum"])
    assert losses[-1] < 0.7 * losses[0]
    assert output.loss_fn_outputs[0]["embedding"].shape == [64]


@pytest.mark.parametrize("loss", ["cross_entropy", "dpo"])
def test_an_encoder_refuses_a_loss_over_tokens(
    loss: str, service: lb.ServiceClient, make_datums: MakeDatums, state_of: StateOf
) -> None:
    client = service.create_training_client("tiny-encoder")
    before = state_of(client)
    with pytest.raises(ModelError, match="tiny-encoder is an encoder: it has embeddings, but no logprobs"):
        client.forward_backward(make_datums(2), loss).result()
    assert state_of(client) == before


def test_a_decoder_has_embeddings_too(training: TrainingClient, make_datums: MakeDatums) -> None:
    outputs = {
        pooling: training.forward(make_datums(4), "info_nce", pooling=pooling).result().loss_fn_outputs
        for pooling in ("mean", "last")
    }
    assert outputs["mean"][0]["embedding"].shape == outputs["last"][0]["embedding"].shape == [64]
    assert outputs["mean"] != outputs["last"]


@pytest.mark.parametrize("rank", [0, -1, 65, 2.5, True])
def test_an_impossible_rank_is_refused(rank: Any, service: lb.ServiceClient) -> None:
    with pytest.raises(ModelError, match="LoRA rank must be an integer from 1 to"):
        service.create_lora_training_client("tiny", rank=rank)


def test_an_adapter_on_nothing_is_refused(service: lb.ServiceClient) -> None:
    with pytest.raises(ModelError, match="LoRA needs a part to train"):
        service.create_lora_training_client("tiny", rank=4, train_mlp=False, train_attn=False)


def test_an_adapter_on_the_head_gets_its_gradient(
    service: lb.ServiceClient, make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    client = service.create_lora_training_client(
        "tiny", rank=4, seed=0, train_mlp=False, train_attn=False, train_unembed=True
    )
    client.forward_backward(make_datums(4), "cross_entropy").result()
    gradients = gradients_of(client)
    assert {name.rsplit(".lora", 1)[0] for name in gradients} == {"lm_head"}
    assert all(bool(gradient.any()) for name, gradient in gradients.items() if "lora_B" in name)


def test_a_seed_fixes_the_adapter_and_leaves_the_global_random_state_alone(service: lb.ServiceClient) -> None:
    state = torch.get_rng_state()
    first, same, other = (all_parameters(service.create_lora_training_client("tiny", 4, seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert not changed(first, same)
    assert changed(first, other)


def test_a_run_can_be_repeated_bit_for_bit(make_datums: MakeDatums, state_of: StateOf) -> None:
    assert torch.get_num_threads() == 1
    states = []
    for _ in range(2):
        client = lb.ServiceClient(device="cpu").create_lora_training_client("tiny", rank=4, seed=0)
        for seed in range(3):
            client.forward_backward(make_datums(4, seed=seed), "grpo").result()
            client.optim_step(PARAMS).result()
        states.append(state_of(client))
    assert states[0] == states[1]


def test_training_makes_the_data_likelier(training: TrainingClient, make_datums: MakeDatums) -> None:
    losses = []
    for _ in range(10):
        losses.append(training.forward_backward(make_datums(2), "cross_entropy").result().metrics["loss:sum"])
        training.optim_step(PARAMS).result()
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("create", ["create_training_client", "create_lora_training_client"])
def test_bfloat16_weights_are_trained_in_float32_and_their_logprobs_are_float32(
    create: str, make_datums: MakeDatums
) -> None:
    service = lb.ServiceClient(device="cpu", dtype=torch.bfloat16)
    client = getattr(service, create)("tiny", **({"rank": 4, "seed": 0} if "lora" in create else {}))
    assert {p.dtype for p in client.local.model.trainable().values()} == {torch.float32}
    losses = []
    for _ in range(4):
        losses.append(client.forward_backward_custom(make_datums(3), weighted_sum).result().metrics["loss:sum"])
        client.optim_step(PARAMS).result()
    assert losses[-1] < losses[0]


def test_info_says_what_is_trained(training: TrainingClient, service: lb.ServiceClient) -> None:
    info = training.get_info()
    assert (info.model_name, info.is_lora, info.lora_rank, info.device) == ("tiny", True, 4, "cpu")
    assert info.model_data.arch == "llama"
    full = service.create_training_client("tiny").get_info()
    assert (full.is_lora, full.lora_rank) == (False, None)
    assert full.trainable_parameters > info.trainable_parameters > 0
    assert full.model_id != info.model_id


# --- what it takes ----------------------------------------------------------------------------------------------------


def test_datums_of_the_tinker_sdk_and_mappings_are_taken_as_they_are(training: TrainingClient) -> None:
    tokens, weights = [1, 2, 3, 4], [0.0, 1.0, 0.5]
    theirs = tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData(data=tokens[1:], dtype="int64", shape=[3]),
            "weights": tinker.TensorData(data=weights, dtype="float32", shape=[3]),
        },
    )
    mapping = {"model_input": tokens[:-1], "loss_fn_inputs": {"target_tokens": tokens[1:], "weights": weights}}
    ours = lb.Datum(lb.ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:], "weights": weights})
    values = [training.forward([d]).result().metrics["loss:sum"] for d in (theirs, mapping, ours)]
    assert values[0] == values[1] == values[2]
    training.forward_backward([theirs], "cross_entropy").result()
    training.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()


def test_what_is_no_datum_is_refused_at_once(training: TrainingClient) -> None:
    with pytest.raises(DtypeError, match="expected a Datum"):
        training.forward_backward([[1, 2, 3]], "cross_entropy")
    with pytest.raises(OptimizerError, match=r"optim_step takes AdamParams\(learning_rate=\.\.\.\), got dict"):
        training.optim_step({"learning_rate": 1e-3}).result()


def test_an_unknown_loss_is_refused_at_once_with_the_likeliest_id(
    training: TrainingClient, make_datums: MakeDatums
) -> None:
    with pytest.raises(UnknownLossError, match="Did you mean 'cross_entropy'"):
        training.forward_backward(make_datums(1), "crossentropy")


def test_an_unknown_setting_is_refused_at_once_with_the_likeliest_one(
    training: TrainingClient, make_datums: MakeDatums
) -> None:
    with pytest.raises(LossConfigError, match="clip_high"):
        training.forward_backward(make_datums(1), "ppo", {"clip_hihg": 1.3})


def test_settings_reach_the_loss(training: TrainingClient, make_datums: MakeDatums) -> None:
    datums = make_datums(6)
    fractions = [
        training.forward(datums, "ppo", {"clip_low": 1.0 - width, "clip_high": 1.0 + width})
        .result()
        .metrics["clip_fraction"]
        for width in (0.01, 0.9)
    ]
    assert fractions[0] > fractions[1]


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(lb.get_loss("cross_entropy"), id="a Loss"),
        pytest.param(1.0 * lb.get_loss("cross_entropy"), id="a mixture"),
        pytest.param(lambda logprobs: -logprobs, id="a function of logprobs"),
        pytest.param(weighted_sum, id="a function of datums and logprobs"),
        pytest.param("lossbook.losses.supervised:cross_entropy", id="module:function"),
    ],
)
def test_a_loss_may_be_named_or_given(loss: Any, training: TrainingClient, make_datums: MakeDatums) -> None:
    datums = make_datums(3)
    by_name = training.forward(datums, "cross_entropy").result().metrics["loss:sum"]
    assert training.forward(datums, loss).result().metrics["loss:sum"] == pytest.approx(by_name, rel=1e-6)


def test_a_contrastive_call_is_info_nce_over_queries_and_documents(
    training: TrainingClient, make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    datums = make_datums(5)
    call = training.forward_backward_contrastive(datums, num_queries=2, temperature=0.1, num_extra_negatives=1)
    value, gradients = call.result().metrics["loss:sum"], gradients_of(training)
    training.discard_gradients().result()
    config = {"temperature": 0.1, "num_extra_negatives": 1}
    assert training.forward_backward(datums, "info_nce", config, pooling="last").result().metrics["loss:sum"] == value
    assert all(torch.equal(gradients[name], gradient) for name, gradient in gradients_of(training).items())


def test_a_contrastive_call_with_other_numbers_of_datums_is_refused(
    training: TrainingClient, make_datums: MakeDatums
) -> None:
    with pytest.raises(LossContractError, match="make 5 datums, but there are 4"):
        training.forward_backward_contrastive(make_datums(4), num_queries=2, temperature=0.1, num_extra_negatives=1)


# --- steps and order --------------------------------------------------------------------------------------------------


def test_calls_run_in_the_order_in_which_they_were_made(training: TrainingClient, make_datums: MakeDatums) -> None:
    futures = []
    for seed in range(3):
        futures.append(training.forward_backward(make_datums(2, seed=seed), "cross_entropy"))
        futures.append(training.optim_step(PARAMS))
    steps = [future.result().step for future in futures[1::2]]
    assert steps == [1, 2, 3]


def test_results_can_be_awaited(training: TrainingClient, make_datums: MakeDatums) -> None:
    async def train() -> float:
        output = await training.forward_backward(make_datums(2), "cross_entropy")
        await training.optim_step(PARAMS)
        return output.metrics["loss:sum"]

    assert asyncio.run(train()) > 0


def test_a_step_reports_what_it_did(training: TrainingClient, make_datums: MakeDatums) -> None:
    datums = make_datums(4)
    for _ in range(2):
        tokens = training.forward_backward(datums, "cross_entropy").result().metrics["response_tokens"]
    step = training.optim_step(
        lb.AdamParams(learning_rate=2e-3, grad_clip_norm=1e-3), grad_accumulation_normalization="num_loss_tokens"
    )
    metrics = step.result().metrics
    assert metrics["accumulated_calls"] == 2
    assert metrics["normalizer"] == 2 * tokens
    assert (step.result().step, step.result().learning_rate) == (1, 2e-3)
    assert not metrics.keys() & {"step", "learning_rate"}, "programs merge metrics into their own of these names"
    assert metrics["grad_norm"] > metrics["grad_norm_clipped"] == pytest.approx(1e-3)


def test_sequences_are_counted_without_those_of_weight_zero(training: TrainingClient) -> None:
    datums = [lb.datum_from_tokens_weights([1, 2, 3], [w, w, w]) for w in (1.0, 0.0, 0.5)]
    training.forward_backward(datums, "cross_entropy").result()
    metrics = training.optim_step(PARAMS, grad_accumulation_normalization="num_sequences").result().metrics
    assert metrics["normalizer"] == 2


def test_discarding_forgets_gradients_and_what_they_counted(
    training: TrainingClient, make_datums: MakeDatums, state_of: StateOf
) -> None:
    before = state_of(training)
    training.forward_backward(make_datums(2), "grpo").result()
    assert state_of(training) != before
    training.discard_gradients().result()
    assert state_of(training) == before


def test_two_clients_of_a_service_do_not_mix(
    service: lb.ServiceClient, training: TrainingClient, make_datums: MakeDatums, state_of: StateOf
) -> None:
    other = service.create_lora_training_client("tiny", rank=4, seed=0)
    before = state_of(other)
    training.forward_backward(make_datums(2), "cross_entropy").result()
    training.optim_step(PARAMS).result()
    assert state_of(other) == before


def test_a_model_is_loaded_in_turn_with_calls_not_beside_them(service: lb.ServiceClient) -> None:
    # libraries that make models change settings of the process meanwhile, which a call would see, and put back for good
    client, turn = service.create_lora_training_client("tiny", rank=1), threading.Event()
    busy = client.in_turn("wait", lambda _: turn.wait(60))
    loading = threading.Thread(target=service.create_sampling_client, kwargs={"base_model": "tiny"})
    loading.start()
    loading.join(0.3)
    assert loading.is_alive()
    turn.set()
    loading.join(60)
    assert busy.result()
    assert not loading.is_alive()
