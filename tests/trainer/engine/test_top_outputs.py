"""A loss over the model's own likeliest tokens: one forward, one backward, and the gradient of float64 autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import lossbook as lb
from lossbook.datums.errors import ModelError, ShapeError
from lossbook.losses import register_loss, stats, unregister_loss
from lossbook.trainer.clients.training import TrainingClient


def of_top(logprobs: Tensor, topk_logprobs: Tensor, topk_tokens: Tensor, *, top_k: int = 4) -> Any:
    """The target's -logprob times the entropy of the top k, which is pushed at even ids."""
    terms = -(topk_logprobs.exp() * topk_logprobs) * (1 + topk_tokens % 2)
    return -logprobs * terms.sum(-1), {"top_mass": stats.mean(topk_logprobs.exp().sum(-1))}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Any:
    register_loss("of_top", per="token", reduction="token-mean", source="these tests")(of_top)
    yield
    unregister_loss("of_top")


def client_of(**settings: Any) -> TrainingClient:
    return lb.ServiceClient(device="cpu", dtype=torch.float64, **settings).create_training_client("tiny")


def episodes() -> list[lb.Datum]:
    rng = torch.Generator().manual_seed(0)
    data = []
    for length in (7, 12, 5, 9):
        tokens = torch.randint(0, 250, (length + 1,), generator=rng)
        inputs = {"target_tokens": tokens[1:], "weights": torch.rand(length, generator=rng).round(decimals=1)}
        data.append(lb.Datum(lb.ModelInput.from_ints(tokens[:-1]), inputs))
    return data


def by_autograd(client: TrainingClient, loss: Any) -> tuple[float, dict[str, Tensor]]:
    """The same from the model's whole logits."""
    model = client.local.model
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for datum in episodes():
        logits = model.module(torch.tensor([datum.model_input.to_ints()])).logits[0].double()
        every = logits[:, : model.vocab_size].log_softmax(-1)
        best = every.topk(loss.top_k, dim=-1)
        own, targets = datum.loss_fn_inputs["weights"].to_torch().double(), datum.loss_fn_inputs["target_tokens"]
        logprobs = every.gather(1, targets.to_torch()[:, None])[:, 0]
        total = total + (own * of_top(logprobs, best.values, best.indices)[0]).sum()
        weight += float(own.sum())
    value = total / weight
    parameters = model.trainable()
    slopes = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters.items(), slopes, strict=True)
    return float(value.detach()), {name: torch.zeros_like(one) if g is None else g for (name, one), g in pairs}


@pytest.mark.parametrize("top_k", [1, 4, 250])
def test_the_gradient_is_that_of_the_whole_logits(gradients_of: Any, top_k: int) -> None:
    client, loss = client_of(), lb.get_loss("of_top", top_k=top_k)
    expected, slopes = by_autograd(client, loss)
    output = client.forward_backward(episodes(), loss).result()
    assert output.metrics["forward_passes"] == 1
    assert output.metrics["loss:sum"] == pytest.approx(expected, rel=1e-6)
    for name, gradient in gradients_of(client).items():
        torch.testing.assert_close(gradient, slopes[name], rtol=1e-4, atol=1e-7)  # .grad is float32


@pytest.mark.parametrize(
    "settings",
    [{"tokens_per_micro_batch": 12}, {"head_strategy": "recompute"}, {"batching": "padded"}],
    ids=lambda one: next(iter(one)),
)
def test_micro_batches_and_strategies_change_nothing(gradients_of: Any, settings: dict[str, Any]) -> None:
    whole, other = client_of(), client_of(**settings)
    one, two = (client.forward_backward(episodes(), "of_top").result().metrics for client in (whole, other))
    assert one["loss:sum"] == pytest.approx(two["loss:sum"], rel=1e-9)
    assert one["top_mass"] == pytest.approx(two["top_mass"], rel=1e-9)
    for name, gradient in gradients_of(whole).items():
        torch.testing.assert_close(gradients_of(other)[name], gradient, rtol=1e-5, atol=1e-7)


def test_parts_of_a_mixture_read_their_own_number_in_one_forward(gradients_of: Any) -> None:
    parts = [lb.get_loss("of_top", top_k=2), lb.get_loss("of_top", top_k=7, weights="weights_of_all")]
    data = [
        lb.Datum(d.model_input, {**d.loss_fn_inputs, "weights_of_all": [1.0] * d.model_input.length})
        for d in episodes()
    ]
    together, apart = client_of(), client_of()
    output = together.forward_backward(data, parts[0] + 0.5 * parts[1]).result()
    assert output.metrics["forward_passes"] == 1
    assert output.loss_fn_outputs[0]["top_k_logprobs"].shape == [7, 7]
    for factor, part in zip((1.0, 0.5), parts, strict=True):
        apart.forward_backward(data, factor * part).result()
    for name, gradient in gradients_of(apart).items():
        torch.testing.assert_close(gradients_of(together)[name], gradient, rtol=1e-5, atol=1e-7)


def test_a_forward_returns_as_many_as_it_was_asked_for() -> None:
    client = client_of()
    few = client.forward(episodes(), lb.get_loss("of_top", top_k=5), top_k=2).result()
    own = client.forward(episodes(), lb.get_loss("of_top", top_k=5)).result()
    many = client.forward(episodes(), lb.get_loss("of_top", top_k=5), top_k=9).result()
    assert [one.loss_fn_outputs[0]["top_k_indices"].shape[1] for one in (few, own, many)] == [2, 5, 9]
    assert few.metrics["loss:sum"] == own.metrics["loss:sum"] == many.metrics["loss:sum"]


def test_a_function_of_ones_own_over_the_whole_batch_reads_them(gradients_of: Any) -> None:
    def of_batch(logprobs: Tensor, topk_logprobs: Tensor, *, top_k: int = 3) -> Tensor:
        return -logprobs * topk_logprobs.exp().sum(-1).mean()

    register_loss("of_batch", per="token", couples="batch", source="these tests")(of_batch)
    try:
        kept, recomputed = (
            client_of(tokens_per_micro_batch=12),
            client_of(tokens_per_micro_batch=12, kept_graph_tokens=1),
        )
        passes = [
            c.forward_backward(episodes(), "of_batch").result().metrics["forward_passes"] for c in (kept, recomputed)
        ]
        assert passes == [1, 2]
        for name, gradient in gradients_of(kept).items():
            torch.testing.assert_close(gradients_of(recomputed)[name], gradient, rtol=1e-5, atol=1e-7)
    finally:
        unregister_loss("of_batch")


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(ShapeError, match="of_top reads the 9999 likeliest tokens, but tiny has"):
        client_of().forward_backward(episodes(), lb.get_loss("of_top", top_k=9999)).result()
    encoder = lb.ServiceClient(device="cpu").create_training_client("tiny-encoder")
    with pytest.raises(ModelError, match="is an encoder"):
        encoder.forward_backward(episodes(), "of_top").result()
