"""A call reads its arguments before it returns: whatever the caller changes afterwards changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lossbook as lb
from lossbook.trainer.clients.training import TrainingClient

MakeDatums = Callable[..., list[lb.Datum]]
PATIENCE = 60

#: What a caller may do to the datums of a queued call.
CHANGES: dict[str, Callable[[list[lb.Datum]], Any]] = {
    "another tensor": lambda data: data[0].loss_fn_inputs.update(weights=lb.TensorData(np.full(4, 9.0))),  # type: ignore[attr-defined]
    "a raw value": lambda data: data[0].loss_fn_inputs.update(weights=[9.0]),  # type: ignore[attr-defined]
    "a key less": lambda data: data[0].loss_fn_inputs.pop("weights", None),  # type: ignore[attr-defined]
    "no keys": lambda data: data[1].loss_fn_inputs.clear(),  # type: ignore[attr-defined]
    "other tokens": lambda data: data[0].model_input.chunks[0].tokens.reverse(),  # type: ignore[attr-defined]
    "more tokens": lambda data: data[1].model_input.chunks[0].tokens.append(7),  # type: ignore[attr-defined]
    "another chunk": lambda data: data[0].model_input.chunks.append(data[0].model_input.chunks[0]),  # type: ignore[attr-defined]
    "another shape": lambda data: data[0].loss_fn_inputs["target_tokens"].shape.append(1),
    "fewer datums": lambda data: data.pop(),
    "datums in another order": lambda data: data.reverse(),
}


def hold(service: lb.ServiceClient) -> tuple[threading.Event, Any]:
    """Keep the service's thread busy until the event is set."""
    released = threading.Event()
    other = service.create_lora_training_client("tiny", rank=1, seed=0)

    def loss(data: list[lb.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        assert released.wait(PATIENCE)
        return logprobs[0].sum(), {}

    return released, other.forward_backward_custom([lb.datum_from_tokens_weights([1, 2], [0, 1])], loss)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    change=st.lists(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=3, unique=True),
    call=st.sampled_from(["forward", "forward_backward", "forward_backward_custom"]),
)
def test_changes_of_datums_after_a_call_was_made_change_nothing(
    change: list[str], call: str, service: lb.ServiceClient, training: TrainingClient, make_datums: MakeDatums
) -> None:
    def loss(data: list[lb.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        pairs = zip(data, logprobs, strict=True)
        return sum((-(d.loss_fn_inputs["weights"].to_torch() * p).sum() for d, p in pairs), torch.zeros(())), {}

    calls: dict[str, Callable[[list[lb.Datum]], lb.ForwardBackwardOutput]] = {
        "forward": lambda data: training.forward(data, "cross_entropy"),
        "forward_backward": lambda data: training.forward_backward(data, "cross_entropy"),
        "forward_backward_custom": lambda data: training.forward_backward_custom(data, loss),
    }
    expected = calls[call](make_datums(3)).result()
    released, busy = hold(service)
    data = make_datums(3)
    future = calls[call](data)
    for name in change:
        CHANGES[name](data)
    released.set()
    busy.result(PATIENCE)
    assert future.result(PATIENCE).metrics == expected.metrics
    assert future.result().loss_fn_outputs == expected.loss_fn_outputs


def test_values_that_are_put_into_a_datum_before_the_call_count(
    training: TrainingClient, make_datums: MakeDatums
) -> None:
    (first,), (second,) = make_datums(1), make_datums(1)
    weights = 2 * first.loss_fn_inputs["weights"].to_numpy()
    first.loss_fn_inputs["weights"] = weights.tolist()  # type: ignore[index]
    second = lb.Datum(second.model_input, {**second.loss_fn_inputs, "weights": weights})
    assert training.forward([first]).result().metrics == training.forward([second]).result().metrics


def test_changes_of_a_foreign_adam_params_or_loss_after_the_call_change_nothing(
    service: lb.ServiceClient, training: TrainingClient, make_datums: MakeDatums
) -> None:
    other = service.create_lora_training_client("tiny", rank=4, seed=0)
    foreign = SimpleNamespace(**vars(lb.AdamParams(learning_rate=1e-2)))
    loss, config = lb.get_loss("ppo", clip_low=0.5), {"clip_low": 0.5}
    mixture = 0.5 * lb.get_loss("ppo") + 0.5 * lb.get_loss("cross_entropy")
    metrics = []
    for client in (training, other):
        released, busy = hold(service)
        futures = [
            client.forward_backward(make_datums(3), loss),
            client.forward_backward(make_datums(3), "ppo", config),
            client.forward_backward(make_datums(3), mixture),
            client.optim_step(foreign),
        ]
        if client is training:
            foreign.learning_rate = 1e3
            loss.settings["clip_low"], loss.reduction, config["clip_low"] = 0.1, "sum", 0.1
            mixture.parts.pop()
        released.set()
        busy.result(PATIENCE)
        metrics.append([future.result(PATIENCE).metrics for future in futures])
        foreign.learning_rate = 1e-2
        loss, config = lb.get_loss("ppo", clip_low=0.5), {"clip_low": 0.5}
        mixture = 0.5 * lb.get_loss("ppo") + 0.5 * lb.get_loss("cross_entropy")
    assert metrics[0] == metrics[1]


def test_changes_of_prompts_seeds_and_sampling_params_after_the_call_change_nothing(
    service: lb.ServiceClient, training: TrainingClient
) -> None:
    sampler = training.save_weights_and_get_sampling_client()
    good = lb.SamplingParams(max_tokens=4, temperature=1.0, stop=[7])
    expected = sampler.sample_batch([[1, 2], [3, 4, 5]], good, seeds=[1, 2]).result()
    for foreign in (False, True):
        stop, seeds, prompts, tokens = [7], [1, 2], [[1, 2]], [3, 4, 5]
        params: Any = replace(good, stop=stop)
        if foreign:
            params = SimpleNamespace(**vars(params))
        released, busy = hold(service)
        future = sampler.sample_batch([*prompts, lb.ModelInput([lb.EncodedTextChunk(tokens)])], params, seeds=seeds)
        for changed in (stop, seeds, prompts[0], prompts, tokens):
            changed.clear()
        if foreign:
            params.max_tokens, params.temperature = 1, 9.0
        released.set()
        busy.result(PATIENCE)
        assert future.result(PATIENCE) == expected


@pytest.mark.parametrize("params", [{"learning_rate": 1e-3}, 0.1, None])
def test_what_is_no_adam_params_is_refused_at_once(params: Any, training: TrainingClient) -> None:
    with pytest.raises(lb.errors.OptimizerError, match=r"optim_step takes AdamParams\(learning_rate=...\), got"):
        training.optim_step(params)


def test_relative_paths_are_those_of_the_moment_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    monkeypatch.chdir(before)
    service = lb.ServiceClient(device="cpu", checkpoint_dir="checkpoints")
    training = service.create_lora_training_client("tiny", rank=1, seed=0)
    released, held = hold(service)
    futures = [
        training.save_state("state"),
        training.load_state("checkpoints/state"),
        training.save_weights_for_sampler("weights"),
        training.export_adapter("adapter"),
        training.export_model("model"),
    ]
    monkeypatch.chdir(after)
    released.set()
    held.result()
    paths = [Path(future.result().path) for future in futures]
    places = ["checkpoints/state", "checkpoints/state", "checkpoints/sampler_weights/weights", "adapter", "model"]
    assert paths == [before / place for place in places]
    assert all(path.is_dir() for path in paths)
    assert list(after.iterdir()) == []
