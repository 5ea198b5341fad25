"""Sampling workers draw the samples of the trainer's weights, beside the workers that train, and are replaced when they die."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lossbook as lb
from lossbook.datums import errors
from lossbook.trainer.clients.worker import Worker
from lossbook.trainer.training.local_models import LocalModels
from lossbook.trainer.workers import apart
from lossbook.trainer.workers.apart import SamplingWorkers
from lossbook.trainer.workers.models import WorkersModels
from lossbook.trainer.workers.rank import Answer

from .here import GroupHere

ADAM = lb.AdamParams(learning_rate=1e-2)
PROMPTS = [[1, 2, 3], [4, 5], [7, 8, 9, 10]]
PARAMS = lb.SamplingParams(max_tokens=5, seed=3)
MODELS: list[Callable[[lb.ServiceClient], lb.TrainingClient]] = [
    lambda service: service.create_lora_training_client("tiny", rank=4, seed=0),
    lambda service: service.create_training_client("tiny"),
]


class Noted(GroupHere):
    """Notes what goes to the sampling workers, and waits before it samples where a test says so."""

    def __init__(self, fail_at: int = -1) -> None:
        self.sent: list[tuple[str, tuple[Any, ...]]] = []
        self.may_sample = threading.Event()
        self.may_sample.set()
        super().__init__(fail_at)

    def _answers(self, name: str, arguments: tuple[Any, ...]) -> Mapping[int, Answer]:
        self.sent.append((name, arguments))
        if name == "sample":
            assert self.may_sample.wait(120)
        return super()._answers(name, arguments)


@pytest.fixture
def groups() -> list[Noted]:
    """The sampling groups that were started."""
    return []


@pytest.fixture
def beside(tmp_path: Path, groups: list[Noted]) -> lb.ServiceClient:
    """A service with a worker that trains and one that samples."""

    def make() -> Noted:
        groups.append(Noted())
        return groups[-1]

    service = lb.ServiceClient(device="cpu", checkpoint_dir=tmp_path)
    local = service.context.models
    assert isinstance(local, LocalModels)
    models = WorkersModels(local, GroupHere, SamplingWorkers(make).frozen)
    service.context = replace(service.context, models=models, sampling=Worker("sampling"))
    return service


def update(client: lb.TrainingClient, datums: list[lb.Datum]) -> None:
    client.forward_backward(datums, "cross_entropy").result()
    client.optim_step(ADAM).result()


@pytest.mark.parametrize("make", MODELS, ids=["adapters", "all weights"])
def test_samples_after_each_update_are_those_of_one_process(
    make: Any, service: lb.ServiceClient, beside: lb.ServiceClient, make_datums: Callable[..., list[lb.Datum]]
) -> None:
    clients, datums = [make(one) for one in (service, beside)], make_datums(4)
    kept = []
    for _ in range(3):
        samplers = [client.save_weights_and_get_sampling_client() for client in clients]
        here, apart = (one.sample_batch(PROMPTS, PARAMS, num_samples=2).result() for one in samplers)
        assert here == apart
        assert samplers[0].compute_logprobs([1, 2, 3]).result() == samplers[1].compute_logprobs([1, 2, 3]).result()
        kept.append((samplers[1], apart))
        for client in clients:
            update(client, datums)
    for sampler, samples in kept:  # those of earlier weights still have these
        assert sampler.sample_batch(PROMPTS, PARAMS, num_samples=2).result() == samples
    assert len({tuple(samples[0].sequences[0].logprobs) for _, samples in kept}) == 3


def test_only_what_is_trained_travels_and_no_more_than_the_limit_at_once(
    beside: lb.ServiceClient, groups: list[Noted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limits of one byte: each weight alone."""
    monkeypatch.setattr(apart, "AT_ONCE", 1)
    client = MODELS[0](beside)
    client.save_weights_and_get_sampling_client()
    taken = [arguments[1] for name, arguments in groups[0].sent if name == "take"]
    assert all(len(weights) == 1 for weights in taken)
    names = [name for weights in taken for name in weights]
    assert len(names) == len(set(names)) == sum(".lora_" in name for name in names) > 0
    size = sum(weight.content.nbytes for weights in taken for weight in weights.values())
    assert size == 4 * client.get_info().trainable_parameters


def test_samples_are_drawn_while_the_workers_train(
    beside: lb.ServiceClient, groups: list[Noted], make_datums: Callable[..., list[lb.Datum]]
) -> None:
    """The sampling worker waits until the update is done, which therefore cannot have waited for it."""
    client = MODELS[0](beside)
    sampler = client.save_weights_and_get_sampling_client()
    expected = sampler.sample_batch(PROMPTS, PARAMS).result()
    groups[0].may_sample.clear()
    samples = sampler.sample_batch(PROMPTS, PARAMS)
    update(client, make_datums(4))
    assert not samples.done()
    groups[0].may_sample.set()
    assert samples.result() == expected  # of the weights before the update


def test_a_dead_sampling_worker_fails_the_call_and_new_ones_take_its_place(
    beside: lb.ServiceClient, groups: list[Noted], make_datums: Callable[..., list[lb.Datum]]
) -> None:
    client = MODELS[0](beside)
    sampler = client.save_weights_and_get_sampling_client()
    expected = sampler.sample_batch(PROMPTS, PARAMS).result()
    groups[0]._fail_at = len(groups[0].calls) + 1
    with pytest.raises(errors.WorkerDiedError, match=r"died during sample.*the model in training is untouched"):
        sampler.sample_batch(PROMPTS, PARAMS).result()
    with pytest.raises(errors.WorkerDiedError, match="the workers that held them died"):
        sampler.sample_batch(PROMPTS, PARAMS).result()
    assert client.save_weights_and_get_sampling_client().sample_batch(PROMPTS, PARAMS).result() == expected
    assert len(groups) == 2
    update(client, make_datums(4))
    assert client.save_weights_and_get_sampling_client().sample_batch(PROMPTS, PARAMS).result() != expected


def test_a_sampling_worker_forgets_samplers_and_models_whose_clients_are_gone(
    beside: lb.ServiceClient, groups: list[Noted]
) -> None:
    client = MODELS[0](beside)
    for _ in range(3):
        client.save_weights_and_get_sampling_client().sample_batch(PROMPTS, PARAMS).result()
    assert len(groups[0]._rank._service._held) <= 3  # type: ignore[union-attr]  # the model, the last sampler, one to be dropped


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling_workers": 1}, "beside workers that train: give workers too"),
        ({"workers": 1, "sampling_workers": 0}, "at least 1"),
        ({"workers": 2, "base_weights": "4bit"}, "not sharded over workers"),
        ({"worker_timeout": 5.0}, "give workers too, or leave it out"),
    ],
)
def test_workers_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ModelError, match=message):
        lb.ServiceClient(**settings)


def test_a_weight_of_any_dtype_travels_bit_for_bit() -> None:
    import torch

    from lossbook.trainer.workers.sent import SentWeight

    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        weight = torch.randn(3, 5).to(dtype)
        sent = SentWeight.of(weight[:, ::2])
        sent.content.flags.writeable = False  # as Ray gives it
        assert torch.equal(sent.tensor(), weight[:, ::2])
    assert SentWeight.of(torch.tensor(2.0)).tensor().shape == ()
    assert np.array_equal(SentWeight.of(torch.zeros(0)).content, np.zeros(0, np.uint8))


@pytest.mark.slow
def test_a_sampling_worker_that_was_killed_is_replaced_and_the_model_trains_on(
    tmp_path: Path, service: lb.ServiceClient, make_datums: Callable[..., list[lb.Datum]]
) -> None:
    from .test_ray import worker_processes

    before = set(worker_processes())
    there = lb.ServiceClient(device="cpu", workers=1, sampling_workers=1, checkpoint_dir=tmp_path)
    here, client = (MODELS[0](one) for one in (service, there))
    trains = set(worker_processes()) - before
    sampler = client.save_weights_and_get_sampling_client()
    expected = sampler.sample_batch(PROMPTS, PARAMS).result()
    (samples,) = set(worker_processes()) - before - trains
    os.kill(samples, signal.SIGKILL)
    with pytest.raises(errors.WorkerDiedError, match=r"worker 0 of 1 .* died during sample"):
        sampler.sample_batch(PROMPTS, PARAMS).result()
    assert client.save_weights_and_get_sampling_client().sample_batch(PROMPTS, PARAMS).result() == expected
    for one in (here, client):
        update(one, make_datums(4))
    here, there = (
        one.save_weights_and_get_sampling_client().sample_batch(PROMPTS, PARAMS).result() for one in (here, client)
    )
    assert here == there != expected
