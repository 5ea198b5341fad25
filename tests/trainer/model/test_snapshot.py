"""Snapshots share a model's weights until these are written, and keep their numbers afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import lossbook as lb
from lossbook.datums.errors import ModelError
from lossbook.trainer.clients.training import TrainingClient
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.snapshot import Snapshot

PROMPT = [72, 101, 108, 108, 111, 44]


def step(training: TrainingClient, datums: list[lb.Datum]) -> None:
    training.forward_backward(datums, "cross_entropy").result()
    training.optim_step(lb.AdamParams(learning_rate=1e-2)).result()


@pytest.mark.parametrize("how", ["optim_step", "load_state"])
@pytest.mark.parametrize("kind", ["LoRA", "all weights"])
def test_samplers_and_references_keep_their_numbers_when_training_moves_on(
    service: lb.ServiceClient, make_datums: Callable[..., list[lb.Datum]], kind: str, how: str
) -> None:
    training = (
        service.create_lora_training_client("tiny", rank=4, seed=0)
        if kind == "LoRA"
        else service.create_training_client("tiny")
    )
    datums = make_datums(3)
    base = training.save_state("base").result().path
    step(training, datums)
    sampler, reference = training.save_weights_and_get_sampling_client(), training.create_reference_client()
    before = sampler.compute_logprobs(PROMPT).result(), reference.fingerprint().result()
    if how == "optim_step":
        step(training, datums)
    else:
        training.load_state(base).result()
    assert (sampler.compute_logprobs(PROMPT).result(), reference.fingerprint().result()) == before
    later = training.save_weights_and_get_sampling_client()
    assert later.compute_logprobs(PROMPT).result() != before[0]


def places(weights: Any) -> dict[str, int]:
    return {name: weights[name].data_ptr() for name in weights}


def test_weights_are_copied_when_they_are_about_to_be_written_and_once_for_all_that_share_them() -> None:
    model = load_model("tiny", device="cpu").train_all_weights()
    own = {name: p.data_ptr() for name, p in model.trainable().items()}
    first, second = Snapshot.sharing(model), Snapshot.sharing(model)
    assert places(first.weights) == places(second.weights) == own
    model.before_writing()
    assert places(first.weights) == places(second.weights)
    assert not set(places(first.weights).values()) & set(own.values())
    third = Snapshot.sharing(model)
    assert places(third.weights) == own
    assert {name: p.data_ptr() for name, p in model.trainable().items()} == own, (
        "the model's weights stay where they are"
    )


def test_nothing_is_copied_for_a_snapshot_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("tiny", device="cpu").train_all_weights()
    Snapshot.sharing(model)
    monkeypatch.setattr(torch.Tensor, "clone", lambda *_: 1 / 0)
    model.before_writing()


def test_a_write_that_was_not_announced_is_an_error_instead_of_other_numbers() -> None:
    model = load_model("tiny", device="cpu").train_all_weights()
    snapshot = Snapshot.sharing(model)
    with torch.no_grad():
        next(iter(model.trainable().values())).add_(1.0)
    with pytest.raises(ModelError, match="was written while a snapshot shared it"), snapshot.applied():
        pass
