"""Reduction `prompt-mean` in the engine: one forward, and micro-batches that may end inside a group of answers."""

from __future__ import annotations

from typing import Any

import torch

import lossbook as lb

LOSS = lb.get_loss("cross_entropy", reduction="prompt-mean")


def answers() -> list[lb.Datum]:
    rng = torch.Generator().manual_seed(0)
    data = []
    for i, length in enumerate((9, 12, 5, 10, 7, 11)):
        tokens = torch.randint(0, 250, (length + 1,), generator=rng)
        inputs = {"target_tokens": tokens[1:], "weights": torch.rand(length, generator=rng), "group": i % 2}
        data.append(lb.Datum(lb.ModelInput.from_ints(tokens[:-1]), inputs))
    return data


def test_micro_batches_that_cut_groups_give_the_numbers_of_one(gradients_of: Any) -> None:
    results = []
    ways: list[dict[str, Any]] = [{}, {"tokens_per_micro_batch": 12}]
    for settings in [*ways, ways[1] | {"kept_graph_tokens": 1}]:
        client = lb.ServiceClient(device="cpu", dtype=torch.float64, **settings).create_training_client("tiny")
        output = client.forward_backward(answers(), LOSS).result()
        assert output.metrics["forward_passes"] == 1
        results.append((output.metrics, gradients_of(client)))
    assert [metrics["micro_batches"] for metrics, _ in results] == [1, 5, 5]
    for metrics, gradients in results:
        assert metrics["denominator"] == 2
        torch.testing.assert_close(metrics["loss:sum"], results[0][0]["loss:sum"])
        for name, gradient in results[0][1].items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-7)  # .grad is float32


def test_it_is_the_mean_over_groups_of_token_means(gradients_of: Any) -> None:
    client = lb.ServiceClient(device="cpu", dtype=torch.float64).create_training_client("tiny")
    whole = client.forward_backward(answers(), LOSS).result().metrics["loss:sum"]
    together = gradients_of(client)
    other = lb.ServiceClient(device="cpu", dtype=torch.float64).create_training_client("tiny")
    half = 0.5 * lb.get_loss("cross_entropy", reduction="token-mean")
    parts = [other.forward_backward(answers()[i::2], half).result().metrics["loss:sum"] for i in (0, 1)]
    torch.testing.assert_close(whole, sum(parts))
    for name, gradient in gradients_of(other).items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-5, atol=1e-7)


def test_pairs_beside_it_are_not_cut() -> None:
    data = [
        lb.Datum(d.model_input, {**d.loss_fn_inputs, "ref_logprobs": torch.full((d.model_input.length,), -2.0)})
        for d in answers()
    ]
    client = lb.ServiceClient(device="cpu", tokens_per_micro_batch=12).create_training_client("tiny")
    output = client.forward_backward(data, lb.get_loss("dpo") + 0.1 * LOSS).result()
    assert output.metrics["micro_batches"] == 3
