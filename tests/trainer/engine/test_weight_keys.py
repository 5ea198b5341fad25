"""Parts with weight keys of their own in the engine: one forward, each part's gradient as of a call of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lossbook as lb
from lossbook.datums.errors import TokenRangeError
from lossbook.trainer.clients.training import TrainingClient

MIXTURE = lb.get_loss("reinforce", reduction="token-mean") + 0.25 * lb.get_loss(
    "cross_entropy", reduction="seq-mean-token-mean", weights="observed"
)


def client_of(**settings: Any) -> TrainingClient:
    return lb.ServiceClient(device="cpu", dtype=torch.float64, **settings).create_training_client("tiny")


def episodes() -> list[lb.Datum]:
    """Observations, which are predicted, between actions, which are reinforced."""
    rng = torch.Generator().manual_seed(0)
    data = []
    for length in (7, 12, 5, 9):
        tokens = torch.randint(0, 250, (length + 1,), generator=rng)
        acted = (torch.arange(length) % 3 == 0).float()
        inputs = {"weights": acted, "observed": (1 - acted) * 0.5, "advantages": torch.randn(length, generator=rng)}
        data.append(lb.Datum(lb.ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:], **inputs}))
    return data


def test_one_forward_gives_the_gradients_of_two_calls(gradients_of: Any) -> None:
    one, two, cut = client_of(), client_of(), client_of(tokens_per_micro_batch=12)
    output = one.forward_backward(episodes(), MIXTURE).result()
    assert output.metrics["forward_passes"] == output.metrics["micro_batches"] == 1
    assert output.metrics["response_tokens"] == 33
    assert output.metrics["denominator_0"] == sum(len(range(0, n, 3)) for n in (7, 12, 5, 9))
    assert output.metrics["denominator_1"] == 4
    assert cut.forward_backward(episodes(), MIXTURE).result().metrics["micro_batches"] > 1
    two.forward_backward(episodes(), MIXTURE.parts[0][1]).result()
    renamed = [
        lb.Datum(
            d.model_input, {"target_tokens": d.loss_fn_inputs["target_tokens"], "weights": d.loss_fn_inputs["observed"]}
        )
        for d in episodes()
    ]
    two.forward_backward(renamed, 0.25 * lb.get_loss("cross_entropy", reduction="seq-mean-token-mean")).result()
    for name, gradient in gradients_of(one).items():
        torch.testing.assert_close(gradients_of(two)[name], gradient, rtol=1e-5, atol=1e-7)  # .grad is float32
        torch.testing.assert_close(gradients_of(cut)[name], gradient, rtol=1e-5, atol=1e-7)  # .grad is float32


def test_a_target_that_counts_under_any_key_lies_in_the_vocabulary() -> None:
    client = client_of()
    inputs = {"target_tokens": [1, 9999, 2], "weights": [1, 0, 1], "advantages": [1, 1, 1]}
    client.forward_backward(
        [lb.Datum(lb.ModelInput.from_ints([1, 2, 3]), {**inputs, "observed": [1, 0, 0]})], MIXTURE
    ).result()
    for loss in (MIXTURE, lb.get_loss("cross_entropy", weights="observed")):
        with pytest.raises(TokenRangeError, match="target_tokens holds 9999 at position 1"):
            client.forward_backward(
                [lb.Datum(lb.ModelInput.from_ints([1, 2, 3]), {**inputs, "observed": [0, 1, 0]})], loss
            ).result()


def test_the_mean_negative_logprob_is_over_what_counts_under_the_key() -> None:
    def squared(logprobs: torch.Tensor) -> torch.Tensor:
        return logprobs**2

    loss, data = lb.get_loss(squared, weights="observed"), episodes()
    outputs = client_of().forward(data, loss).result()
    rows = [
        output["logprobs"].to_torch()[d.loss_fn_inputs["observed"].to_torch() != 0]
        for output, d in zip(outputs.loss_fn_outputs, data, strict=True)
    ]
    assert outputs.metrics["nll"] == pytest.approx(float(-torch.cat(rows).mean()))
