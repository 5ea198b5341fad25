"""Every embedding loss in the engine: an encoder's gradient is the same however the batch is cut, and whether recomputed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lossbook as lb
from lossbook.trainer.clients.training import TrainingClient

MakeDatums = Callable[..., list[lb.Datum]]
GradientsOf = Callable[[TrainingClient], dict[str, Tensor]]

LOSSES: dict[str, Any] = {
    "angle": lb.get_loss("angle"),
    "contrastive_pairs": lb.get_loss("contrastive_pairs", margin=1.5),
    "cosent": lb.get_loss("cosent"),
    "cosine_similarity": lb.get_loss("cosine_similarity"),
    "info_nce without duplicates": lb.get_loss("info_nce", num_extra_negatives=2),
    "margin_mse": lb.get_loss("margin_mse"),
    "multiple_negatives_ranking": lb.get_loss("multiple_negatives_ranking", num_hard_negatives=1),
    "ntxent": lb.get_loss("ntxent"),
    "siglip": lb.get_loss("siglip"),
    "triplet": lb.get_loss("triplet"),
    "matryoshka": lb.matryoshka("info_nce", dims=(16, 4)),
    "matryoshka over pairs": lb.matryoshka("cosine_similarity", dims=(8, 16)),
    "a mixture": lb.get_loss("cosent") + 0.5 * lb.get_loss("angle"),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_an_encoders_gradient_does_not_depend_on_how_the_batch_is_cut(
    loss: Any, make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    datums = [
        lb.Datum(d.model_input, {"label": float(i // 2 % 3 == 0), "teacher_score": i / 8, "document_id": i % 5})
        for i, d in enumerate(make_datums(12))
    ]
    whole, outputs = [], []
    for settings in ({}, {"tokens_per_micro_batch": 24}, {"tokens_per_micro_batch": 24, "kept_graph_tokens": 1}):
        service = lb.ServiceClient(device="cpu", dtype=torch.float64, **settings)
        client = service.create_training_client("tiny-encoder")
        outputs.append(client.forward_backward(datums, loss).result().metrics)
        whole.append(gradients_of(client))
    assert outputs[0]["micro_batches"] == 1 < outputs[1]["micro_batches"]
    assert outputs[2]["forward_passes"] == (2 if loss.couples == "batch" else 1)
    assert any(bool((gradient != 0).any()) for gradient in whole[0].values())
    for metrics, gradients in zip(outputs[1:], whole[1:], strict=True):
        assert metrics["loss:sum"] == pytest.approx(outputs[0]["loss:sum"], rel=1e-9)
        for name, gradient in whole[0].items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-8, atol=1e-11)
