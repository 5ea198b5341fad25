"""The door's clients: futures of themselves, async twins, checkpoints by their paths, and custom losses."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
import torch
import torch.fx
from torch import Tensor

from lossbook.integrations import tinker
from lossbook.integrations.tinker.settings import current
from lossbook.integrations.tinker.store.store import Store
from lossbook.integrations.tinker.types.training import Metrics

STEP = tinker.AdamParams(learning_rate=1e-2)
PROMPT = tinker.ModelInput.from_ints([1, 2, 3, 4])


def datum(*weights: float, **inputs: Any) -> tinker.Datum:
    carried = {"weights": list(weights)} if weights else {}
    return tinker.Datum(tinker.ModelInput.from_ints([1, 2, 3]), {"target_tokens": [2, 3, 4], **carried, **inputs})


def step(client: tinker.TrainingClient, *, count: int = 1) -> None:
    for _ in range(count):
        client.forward_backward([datum(0.0, 1.0, 1.0)], "cross_entropy")
        client.optim_step(STEP).result()


def logprobs(client: tinker.TrainingClient) -> list[float | None]:
    return client.save_weights_and_get_sampling_client().result().compute_logprobs(PROMPT).result()


# --- clients ----------------------------------------------------------------------------------------------------------


def test_a_client_is_the_future_of_itself_and_can_be_used_as_either(service: tinker.ServiceClient) -> None:
    pending = service.create_lora_training_client("tiny", rank=2, seed=0)
    assert isinstance(pending, tinker.TrainingClient)
    assert isinstance(pending, tinker.APIFuture)
    assert isinstance(pending, tinker.BackcompatTrainingClientFuture)
    used = pending.forward([datum()], "cross_entropy").result()
    client = pending.result()
    assert type(client) is tinker.TrainingClient
    assert pending.model_id == client.model_id
    assert client.forward([datum()], "cross_entropy").result() == used
    assert pending.future().result() is client
    sampler = client.save_weights_and_get_sampling_client()
    assert isinstance(sampler, tinker.SamplingClient)
    assert sampler.compute_logprobs(PROMPT).result() == sampler.result().compute_logprobs(PROMPT).result()


def test_a_client_that_cannot_be_made_says_so_from_its_future(service: tinker.ServiceClient) -> None:
    with pytest.raises(tinker.RequestFailedError, match="no-such-model") as raised:
        service.create_lora_training_client("./no-such-model").result()
    assert raised.value.category == tinker.types.RequestErrorCategory.User
    assert type(raised.value.__cause__).__name__ == "ModelError"
    with pytest.raises(ValueError, match="model_path or base_model"):
        service.create_sampling_client()


def test_a_loop_in_asyncio_with_the_older_names_learns(configure: Any) -> None:
    async def loop() -> list[float]:
        service = tinker.ServiceClient()
        training = await service.create_lora_training_client_async("tiny", rank=4, seed=0)
        losses = []
        for _ in range(3):
            passed = await training.forward_backward_async([datum(0.0, 1.0, 1.0)], "cross_entropy")
            stepped = await training.optim_step_async(STEP)
            losses.append((await passed.result_async()).metrics["loss:sum"])
            assert not {"step", "learning_rate"} & set((await stepped).metrics or {})
        saved = await (await training.save_state_async("final"))
        again = await service.create_training_client_from_state_async(saved.path)
        sampler = await again.save_weights_and_get_sampling_client_async()
        response = await sampler.sample_async(PROMPT, 2, tinker.SamplingParams(max_tokens=2, seed=1))
        assert [len(one.tokens) for one in response.sequences] == [2, 2]
        both = await asyncio.gather(*(sampler.compute_logprobs_async(PROMPT) for _ in range(2)))
        assert both[0] == both[1]
        assert await sampler.get_base_model_async() == "tiny"
        task = asyncio.create_task(sampler.sample(PROMPT, 1, tinker.SamplingParams(max_tokens=1)).coroutine())
        assert len((await task).sequences) == 1
        assert (await service.get_server_capabilities_async()).supported_models[-1].model_name == "tiny-encoder"
        return losses

    first, second, third = asyncio.run(loop())
    assert third < second < first


def test_tinkers_defaults(training: tinker.TrainingClient, service: tinker.ServiceClient) -> None:
    info = training.get_info()
    assert (info.model_data.model_name, info.is_lora, info.lora_rank, info.model_id) == (
        "tiny",
        True,
        4,
        training.model_id,
    )
    run = service.create_rest_client().get_training_run(training.model_id).result()
    assert (run.base_model, run.lora_rank) == ("tiny", 4)
    path = training.save_state("a").result().path
    assert service.create_rest_client().get_weights_info_by_tinker_path(path).result().train_unembed is True


def test_a_name_of_a_model_means_what_the_setting_says(configure: Any) -> None:
    configure(models={"Qwen/Qwen3-8B": "tiny"})
    service = tinker.ServiceClient()
    training = service.create_lora_training_client("Qwen/Qwen3-8B", rank=2, seed=0)
    assert training.get_info().model_data.model_name == "Qwen/Qwen3-8B"
    assert training.get_info().model_data.tokenizer_id == "tiny"
    path = training.save_weights_for_sampler("x").result().path
    for sampler in (
        service.create_sampling_client(path),
        service.create_sampling_client(model_path=path, base_model="Qwen/Qwen3-8B"),
        service.create_sampling_client(base_model="Qwen/Qwen3-8B"),
        training.save_weights_and_get_sampling_client(),
    ):
        assert sampler.get_base_model() == "Qwen/Qwen3-8B"
    assert service.get_server_capabilities().supported_models[0].model_name == "Qwen/Qwen3-8B"


def test_a_session_notes_who_began_it_and_how_it_ended(configure: Any) -> None:
    store = Store(configure(stable_reinforce=None).root)
    service = tinker.ServiceClient(
        {"who": "me"}, "a project", display_name="shown", base_url="http://nowhere", api_key="tml-x"
    )
    service.create_lora_training_client("tiny", rank=1).result()
    with pytest.raises(ZeroDivisionError), service:
        raise ZeroDivisionError
    (session,) = store.sessions.all()
    assert (session.user_metadata, session.project_id, session.display_name) == ({"who": "me"}, "a project", "shown")
    assert session.finish is not None
    assert session.finish.reason == "errored"
    with pytest.raises(RuntimeError, match="closed"):
        service.create_lora_training_client("tiny")
    with pytest.warns(FutureWarning, match="something_new"):
        tinker.ServiceClient(something_new=1)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_load_state_takes_the_weights_alone_and_its_twin_the_optimizer_too(
    training: tinker.TrainingClient, service: tinker.ServiceClient
) -> None:
    step(training, count=3)
    path = training.save_state("three").result().path
    at_three = logprobs(training)
    step(training, count=2)
    at_five = logprobs(training)

    assert training.load_state_with_optimizer(path).result().path == path
    assert logprobs(training) == at_three
    step(training, count=2)
    assert logprobs(training) == at_five

    training.load_state(path).result()
    assert logprobs(training) == at_three
    step(training, count=2)
    fresh = logprobs(training)
    assert fresh != at_five

    for create, expected in (
        (service.create_training_client_from_state_with_optimizer, at_five),
        (service.create_training_client_from_state, fresh),
    ):
        other = create(path).result()
        assert logprobs(other) == at_three
        step(other, count=2)
        assert logprobs(other) == expected


def test_states_and_samplers_have_names_apart_and_another_run_in_the_folder_has_its_own(
    training: tinker.TrainingClient, service: tinker.ServiceClient
) -> None:
    state = training.save_state("final", ttl_seconds=7200, user_metadata={"a": "b"}).result().path
    sampler = training.save_weights_for_sampler("final").result().path
    assert state == f"tinker://{training.model_id}/weights/final"
    assert sampler == f"tinker://{training.model_id}/sampler_weights/final"
    for other in (
        service.create_lora_training_client("tiny", rank=1),
        tinker.ServiceClient().create_lora_training_client("tiny", rank=1),
    ):
        assert other.save_state("final").result().path not in (state, sampler)
    with pytest.raises(tinker.TinkerError, match="final"):
        training.save_state("final").result()
    training.save_state("final", overwrite=True).result()
    rest = service.create_rest_client()
    listed = rest.list_checkpoints(training.model_id).result().checkpoints
    assert sorted(one.tinker_path for one in listed) == sorted([state, sampler])
    with pytest.raises(tinker.TinkerError, match="save_state"):
        training.load_state(sampler).result()
    with pytest.raises(tinker.TinkerError, match="Did you mean"):
        service.create_sampling_client(sampler.replace("final", "finall")).result()
    copied = tinker.ServiceClient(project_id="another").copy_weights(state).result()
    assert logprobs(service.create_training_client_from_state(copied).result()) == logprobs(training)


def test_an_exported_checkpoint_is_an_adapter_and_is_not_sampled_from(
    training: tinker.TrainingClient, service: tinker.ServiceClient
) -> None:
    path = training.save_weights_external("out").result().path
    folder = Store(current().root).locate(path).folder
    assert (folder / "adapter_config.json").is_file()
    with pytest.raises(tinker.TinkerError, match="exported for other programs"):
        service.create_sampling_client(path).result()


def test_what_was_queued_behind_a_failed_call_does_not_run_and_says_so(training: tinker.TrainingClient) -> None:
    before = logprobs(training)
    failed = training.forward_backward([datum(), tinker.Datum(PROMPT, {"target_tokens": [1]})], "cross_entropy")
    stepped = training.optim_step(STEP)
    with pytest.raises(tinker.RequestFailedError, match="datum 1") as raised:
        failed.result()
    assert isinstance(raised.value.__cause__, ValueError)
    with pytest.raises(tinker.RequestFailedError) as held:
        stepped.result()
    assert "did not run: it was queued behind" in str(held.value)
    assert logprobs(training) == before
    step(training)
    assert logprobs(training) != before


def test_metrics_say_how_they_merge_with_those_of_another_call(training: tinker.TrainingClient) -> None:
    metrics = training.forward_backward([datum(0.0, 1.0, 1.0)], "cross_entropy").result().metrics
    assert isinstance(metrics, Metrics)
    assert metrics.kinds.keys() == metrics.keys()
    kinds = {name: metrics.kinds[name] for name in ("loss:sum", "nll", "datums", "forward_passes")}
    assert kinds == {"loss:sum": "sum", "nll": "mean", "datums": "sum", "forward_passes": "max"}


# --- custom losses ----------------------------------------------------------------------------------------------------


def weighted(logprobs: Tensor, weights: Tensor) -> Any:
    loss = -(logprobs * weights).sum()
    return loss, {"custom/nll:sum": loss, "custom/positions:mean": torch.ones_like(weights).sum()}


def test_a_function_gets_the_given_datums_and_every_position(training: tinker.TrainingClient) -> None:
    data = [datum(0.0, 0.0, 1.0), datum(0.0, 0.0, 0.0)]

    def loss(given: list[tinker.Datum], rows: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        assert all(one is other for one, other in zip(given, data, strict=True))
        assert all(bool((row < -0.1).all()) for row in rows)
        return -torch.stack(rows).sum(), {"rows": float(len(rows))}

    output = training.forward_backward_custom(data, loss, loss_type_input="logprobs").result()
    plain = training.forward([datum()] * 2, "cross_entropy").result()
    assert output.metrics["loss:sum"] == pytest.approx(plain.metrics["loss:sum"], rel=1e-6)
    assert output.metrics["rows"] == 2
    with pytest.raises(TypeError, match="embeddings"):
        training.forward_backward_custom(data, loss, loss_type_input="embeddings")  # type: ignore[arg-type]


def test_a_handle_adds_up_the_losses_of_datums_and_its_metrics_by_their_suffix(
    training: tinker.TrainingClient, service: tinker.ServiceClient
) -> None:
    handle = service.create_custom_loss(weighted, {"logprobs": 1, "weights": 1}).result()
    assert (handle.name, handle.input_names, handle.loss_id) == ("weighted", ("weights",), None)
    data = [datum(0.0, 1.0, 2.0), datum(1.0, 0.0, 0.0)]
    metrics = training.forward_backward_custom(data, handle).result().metrics
    norm = training.optim_step(tinker.AdamParams(learning_rate=0.0)).result().metrics["grad_norm"]
    expected = training.forward_backward(data, "cross_entropy").result().metrics["loss:sum"]
    assert metrics["loss:sum"] == pytest.approx(expected, rel=1e-6)
    assert metrics["custom/nll:sum"] == pytest.approx(expected, rel=1e-6)
    assert metrics["custom/positions:mean"] == 3
    assert training.optim_step(tinker.AdamParams(learning_rate=0.0)).result().metrics["grad_norm"] == pytest.approx(
        norm, rel=1e-5
    )

    with pytest.raises(KeyError, match="'weights', which datum 1 of 2"):
        training.forward_backward_custom([data[0], datum()], handle)
    with pytest.raises(ValueError, match=r"rank 1.*datum 0 of 1.*rank 2"):
        training.forward_backward_custom([datum(weights=[[1.0], [1.0], [1.0]])], handle)
    with pytest.raises(ValueError, match="made in this session before"):
        service.create_custom_loss(weighted, {"logprobs": 1, "weights": 1})
    other = tinker.ServiceClient().create_lora_training_client("tiny", rank=1)
    with pytest.raises(TypeError, match="make it again"):
        other.forward_backward_custom(data, handle)


def branches(logprobs: Tensor) -> Any:
    return (logprobs.sum() if logprobs.sum() > 0 else -logprobs.sum()), {}


def captures(logprobs: Tensor) -> Any:
    return (logprobs * CAPTURED).sum(), {}


@torch.fx.wrap
def scale(logprobs: Tensor) -> Tensor:
    """A function that torch.fx does not look into."""
    return logprobs * 2


CAPTURED = torch.ones(3)
WRONG: dict[str, tuple[Any, dict[str, int]]] = {
    "decide what Python does": (branches, {"logprobs": 1}),
    "surroundings": (captures, {"logprobs": 1}),
    "leaves torch": (lambda logprobs: (logprobs.sum(), {"custom/a:sum": logprobs.sum().item()}), {"logprobs": 1}),
    "backward": (lambda logprobs: (logprobs.sum().backward(), {}), {"logprobs": 1}),
    "do not have": (lambda logprobs: (logprobs.total(), {}), {"logprobs": 1}),
    "must return": (lambda logprobs: logprobs.sum(), {"logprobs": 1}),
    "made from logprobs": (lambda logprobs: (1.0, {}), {"logprobs": 1}),
    "must be called custom": (lambda logprobs: (logprobs.sum(), {"nll": logprobs.sum()}), {"logprobs": 1}),
    "must be a tensor": (lambda logprobs: (logprobs.sum(), {"custom/a:sum": 1.0}), {"logprobs": 1}),
    "first parameter must be logprobs": (lambda weights: (weights.sum(), {}), {"weights": 1}),
    "has a default": (lambda logprobs, weights=None: (logprobs.sum(), {}), {"logprobs": 1, "weights": 1}),
    "must be positional": (lambda logprobs, *weights: (logprobs.sum(), {}), {"logprobs": 1, "weights": 1}),
    "must give a rank for": (lambda logprobs, weights: (logprobs.sum(), {}), {"logprobs": 1}),
    "which logprobs are not": (lambda logprobs: (logprobs.sum(), {}), {"logprobs": 0}),
    "name of lower-case": (lambda logprobs, é: (logprobs.sum(), {}), {"logprobs": 1, "é": 1}),
    "torch and math only": (lambda logprobs: (scale(logprobs).sum(), {}), {"logprobs": 1}),
}
RIGHT: dict[str, tuple[Any, dict[str, int]]] = {
    "a clipped ratio": (
        lambda logprobs, q, a: (
            -torch.minimum((logprobs - q).exp() * a, (logprobs - q).exp().clamp(0.8, 1.2) * a).sum(),
            {},
        ),
        {"logprobs": 1, "q": 1, "a": 1},
    ),
    "a function of math and one of nn": (
        lambda logprobs, beta: (-torch.nn.functional.logsigmoid(beta * logprobs.sum()) * math.sqrt(2.0), {}),
        {"logprobs": 1, "beta": 0},
    ),
    "candidates": (lambda logprobs, p: (-(p * logprobs).sum(), {"custom/a/b:mean": p.max()}), {"logprobs": 2, "p": 2}),
}


@pytest.mark.parametrize("words", WRONG)
def test_what_the_hosted_service_would_not_take_is_refused(standing_service: tinker.ServiceClient, words: str) -> None:
    function, ranks = WRONG[words]
    with pytest.raises(ValueError, match=words):
        standing_service.create_custom_loss(function, ranks)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["right", "wrong"])
def test_the_official_sdk_takes_and_refuses_the_same(service: tinker.ServiceClient, kind: str) -> None:
    sdk = pytest.importorskip(
        "tinker.lib.public_interfaces.custom_loss", reason="the official SDK comes with lossbook[peers]"
    )
    for function, ranks in (RIGHT if kind == "right" else WRONG).values():
        if kind == "right":
            ours = service.create_custom_loss(function, ranks).result()  # type: ignore[arg-type]
            theirs = sdk.trace_loss(function, ranks, ours.session_id)
            assert ours.graph.code == theirs.graph.code
            assert ours.input_names == theirs.input_names
        else:
            with pytest.raises(ValueError, match="create_custom_loss"):
                sdk.trace_loss(function, ranks, "session")
