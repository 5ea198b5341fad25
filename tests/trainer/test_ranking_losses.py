"""Ranking losses in the engine: groups stay whole, so that micro-batches give one and the same gradient in one forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lossbook as lb
from lossbook.trainer.clients.training import TrainingClient

#: Groups whose members lie apart, of 3, 1, 2 and 2 datums.
GROUPS = [4, 0, 9, 4, 2, 9, 2, 4]


def candidates() -> list[lb.Datum]:
    """A query of 20 tokens and a candidate's, of which the last token is read."""
    rng = np.random.default_rng(0)
    queries = {group: rng.integers(5, 60, 20) for group in sorted(set(GROUPS))}
    data = []
    for i, group in enumerate(GROUPS):
        tokens = [*queries[group].tolist(), *rng.integers(5, 60, 3 + i).tolist()]
        weights = [0.0] * (len(tokens) - 1) + [1.0]
        carried = {"target_tokens": tokens, "weights": weights, "label": i % 3, "group": group}
        data.append(lb.Datum(lb.ModelInput.from_ints(tokens), carried))
    return data


@pytest.mark.parametrize("batching", ["packed", "padded"])
def test_a_ranking_loss_does_not_depend_on_micro_batches(
    batching: str, gradients_of: Callable[[TrainingClient], dict[str, Tensor]]
) -> None:
    loss = lb.get_loss("lambda_loss") + 0.5 * lb.get_loss("adr_mse")
    results, gradients = [], []
    for tokens in (None, 40):
        settings: dict[str, Any] = {"batching": batching, "tokens_per_micro_batch": tokens}
        service = lb.ServiceClient(device="cpu", dtype=torch.float64, **settings)
        client = service.create_training_client("tiny", value_head=True)
        client.forward_backward(candidates(), loss).result()
        client.optim_step(lb.AdamParams(learning_rate=0.1)).result()  # a head of zeros sends nothing into the model
        results.append(client.forward_backward(candidates(), loss).result().metrics)
        gradients.append(gradients_of(client))
    assert [one["micro_batches"] for one in results] == [1, 4], "as many as groups"
    assert [one["forward_passes"] for one in results] == [1, 1]
    assert results[1]["loss:sum"] == pytest.approx(results[0]["loss:sum"], rel=1e-9)
    assert results[1]["lambda_loss/ndcg"] == pytest.approx(results[0]["lambda_loss/ndcg"])
    assert any(
        float(gradient.abs().max()) > 1e-6 for name, gradient in gradients[0].items() if "value_head" not in name
    )
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-7, atol=1e-10)
