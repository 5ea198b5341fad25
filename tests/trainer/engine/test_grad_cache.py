"""A loss over the whole batch: keeping all graphs and recomputing them (GradCache) give one gradient, dropout or not."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lossbook as lb
from lossbook.trainer.clients.training import TrainingClient

MakeDatums = Callable[..., list[lb.Datum]]
GradientsOf = Callable[[TrainingClient], dict[str, Tensor]]
Call = Callable[[TrainingClient, list[lb.Datum]], Any]
SMALL = {"tokens_per_micro_batch": 24}


def variance(data, logprobs_list):
    """It couples every token of the batch with every other, so no cut of it would be right."""
    return torch.cat(list(logprobs_list)).var(), {}


CALLS: dict[str, Call] = {
    "info_nce": lambda client, datums: client.forward_backward(datums, "info_nce").result(),
    "a batch-style loss": lambda client, datums: client.forward_backward_custom(datums, variance).result(),
}


def client_of(base_model: str, **settings: Any) -> TrainingClient:
    return lb.ServiceClient(device="cpu", dtype=torch.float64, **settings).create_training_client(base_model)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_recomputing_the_graphs_gives_the_gradient_of_keeping_them(
    call: Call, make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    datums = make_datums(8)
    once, twice = client_of("tiny", **SMALL), client_of("tiny", **SMALL, kept_graph_tokens=1)
    kept, recomputed = call(once, datums), call(twice, datums)
    assert kept.metrics["forward_passes"] == 1
    assert recomputed.metrics["forward_passes"] == 2
    assert recomputed.metrics["micro_batches"] == kept.metrics["micro_batches"] > 1
    for name, gradient in gradients_of(once).items():
        torch.testing.assert_close(gradients_of(twice)[name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_the_second_forward_drops_what_the_first_one_dropped(
    call: Call, model_with_dropout: str, make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    datums = make_datums(8)
    results = []
    for settings in ({}, {"kept_graph_tokens": 1}):
        client = client_of(model_with_dropout, **SMALL, **settings, dropout=True)
        torch.manual_seed(7)
        output = call(client, datums)
        results.append((gradients_of(client), output.metrics["loss:sum"], torch.get_rng_state()))
    (kept, value, state), (recomputed, same_value, same_state) = results
    assert same_value == value
    assert torch.equal(same_state, state), "what comes after draws the same random numbers either way"
    for name, gradient in kept.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-9, atol=1e-12)


def test_dropout_is_off_unless_asked_for(
    model_with_dropout: str, make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    datums, gradients = make_datums(4), []
    for dropout in (False, False, True, True):
        client = client_of(model_with_dropout, dropout=dropout)
        client.forward_backward(datums, "cross_entropy").result()
        gradients.append(torch.cat([g.reshape(-1) for g in gradients_of(client).values()]))
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[2], gradients[3])


@pytest.mark.parametrize("settings", [{}, {"kept_graph_tokens": 1}], ids=["kept graphs", "second forward"])
def test_targets_of_several_widths_may_lie_in_several_micro_batches(
    settings: dict[str, int], gradients_of: GradientsOf
) -> None:
    def datum(length: int, width: int) -> lb.Datum:
        tokens = torch.arange(length) + 40
        return lb.Datum(lb.ModelInput.from_ints(tokens), {"target_tokens": tokens[:, None] + torch.arange(width)})

    def variance_of_all(data: Any, logprobs_list: Any) -> Any:
        return torch.cat([x.reshape(-1) for x in logprobs_list]).var(), {}

    datums = [datum(12, 3), datum(20, 1), datum(16, 2), datum(9, 3)]
    whole, cut = client_of("tiny"), client_of("tiny", **SMALL, **settings)
    outputs = [client.forward_backward_custom(datums, variance_of_all).result() for client in (whole, cut)]
    assert outputs[1].metrics["micro_batches"] > 1
    for one, other, of in zip(*(output.loss_fn_outputs for output in outputs), datums, strict=True):
        assert other["logprobs"].shape == of.loss_fn_inputs["target_tokens"].shape
        torch.testing.assert_close(other["logprobs"].to_torch(), one["logprobs"].to_torch(), rtol=1e-6, atol=1e-6)
    for name, gradient in gradients_of(whole).items():
        torch.testing.assert_close(gradients_of(cut)[name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"checkpoint_layers": True}, {"offload_activations": True}], ids=str)
def test_graphs_are_kept_where_what_the_first_one_takes_leaves_memory_for_all(
    settings: dict[str, Any], make_datums: MakeDatums, gradients_of: GradientsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    datums, passes, gradients = make_datums(8), {}, []
    for free in (0, 2**20, 2**40):
        monkeypatch.setattr(os, "sysconf", lambda name, free=free: {"SC_AVPHYS_PAGES": free, "SC_PAGE_SIZE": 1}[name])
        client = client_of("tiny", **SMALL, **settings)
        passes[free] = client.forward_backward(datums, "info_nce").result().metrics["forward_passes"]
        gradients.append(gradients_of(client))
    # one of these micro-batches holds about 0.3 MB of float64, and a tenth of it with checkpoints
    assert passes == {0: 2, 2**20: 1 if "checkpoint_layers" in settings else 2, 2**40: 1}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradient, gradients[2][name], rtol=1e-9, atol=1e-12)


def test_a_batch_of_one_micro_batch_never_needs_a_second_forward(make_datums: MakeDatums) -> None:
    output = client_of("tiny", kept_graph_tokens=1).forward_backward(make_datums(4), "info_nce").result()
    assert output.metrics["forward_passes"] == 1


def test_a_loss_that_decomposes_never_needs_a_second_forward(make_datums: MakeDatums) -> None:
    client = client_of("tiny", **SMALL, kept_graph_tokens=1)
    assert client.forward_backward(make_datums(8), "dpo").result().metrics["forward_passes"] == 1
    assert client.forward_backward(make_datums(8), "cross_entropy").result().metrics["micro_batches"] > 1


def test_an_encoder_recomputes_its_embeddings_to_the_same_gradient(
    make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    datums = [lb.Datum(d.model_input) for d in make_datums(8)]
    gradients = []
    for settings in ({}, SMALL, {**SMALL, "kept_graph_tokens": 1}):
        client = client_of("tiny-encoder", **settings)
        client.forward_backward(datums, "info_nce").result()
        gradients.append(gradients_of(client))
    for cut in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(cut[name], gradient, rtol=1e-8, atol=1e-12)
