"""Preference losses in the engine: cutting into micro-batches, and recomputing their graphs, gives one and the same gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lossbook as lb
from lossbook.trainer.clients.training import TrainingClient

WHOLE: dict[str, Any] = {}
CUT = {"tokens_per_micro_batch": 24}
RECOMPUTED = {**CUT, "kept_graph_tokens": 1}


def client_of(**settings: Any) -> TrainingClient:
    return lb.ServiceClient(device="cpu", dtype=torch.float64, **settings).create_training_client("tiny")


@pytest.mark.parametrize(
    ("loss", "passes"), [("margin_dpo", 1), ("ld_dpo", 1), ("orpo", 1), ("aot", 2), ("aot_unpaired", 2), ("kto", 2)]
)
def test_a_preference_loss_does_not_depend_on_micro_batches(
    loss: str,
    passes: int,
    make_datums: Callable[..., list[lb.Datum]],
    gradients_of: Callable[[TrainingClient], dict[str, Tensor]],
) -> None:
    marks = [{"margin": 0.25 * i, "label": i % 2, "is_mismatched": int(i > 5)} for i in range(8)]
    read = {one.name for one in lb.get_loss(loss).spec.inputs}
    datums = [
        lb.Datum(d.model_input, {**d.loss_fn_inputs, **{k: v for k, v in mark.items() if k in read}})
        for d, mark in zip(make_datums(8), marks, strict=True)
    ]
    values, gradients = [], []
    for settings in (WHOLE, CUT, RECOMPUTED):
        client = client_of(**settings)
        metrics = client.forward_backward(datums, loss).result().metrics
        assert metrics["forward_passes"] == (passes if settings is RECOMPUTED else 1)
        assert (metrics["micro_batches"] == 1) == (settings is WHOLE)
        values.append(metrics["loss:sum"])
        gradients.append(gradients_of(client))
    assert values == pytest.approx([values[0]] * 3, rel=1e-12)
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-9, atol=1e-12)
