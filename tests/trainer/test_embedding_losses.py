"""Every embedding loss in the engine: an encoder's gradient is the same however the batch is cut, and whether recomputed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lossbook as lb
from lossbook.trainer.clients.training import TrainingClient
from lossbook.trainer.model.load import load_model

MakeDatums = Callable[..., list[lb.Datum]]
GradientsOf = Callable[[TrainingClient], dict[str, Tensor]]

LOSSES: dict[str, Any] = {
    "angle": lb.get_loss("angle"),
    "batch_all_triplet": lb.get_loss("batch_all_triplet"),
    "batch_hard_soft_margin_triplet": lb.get_loss("batch_hard_soft_margin_triplet"),
    "batch_hard_triplet": lb.get_loss("batch_hard_triplet", distance="cosine", margin=0.5),
    "batch_semi_hard_triplet": lb.get_loss("batch_semi_hard_triplet"),
    "contrastive_pairs": lb.get_loss("contrastive_pairs", margin=1.5),
    "cosent": lb.get_loss("cosent"),
    "cosine_similarity": lb.get_loss("cosine_similarity"),
    "embedding_distill": lb.get_loss("embedding_distill"),
    "flops": lb.get_loss("flops"),
    "gist": lb.get_loss("gist", num_hard_negatives=1, temperature=0.1),
    "gor": lb.get_loss("gor", second_moment_weight=2.0),
    "in_batch_kl": lb.get_loss("in_batch_kl"),
    "info_nce without duplicates": lb.get_loss("info_nce", num_extra_negatives=2),
    "margin_mse": lb.get_loss("margin_mse"),
    "maxsim": lb.get_loss("maxsim", num_hard_negatives=1),
    "multiple_negatives_ranking": lb.get_loss("multiple_negatives_ranking", num_hard_negatives=1),
    "multiple_negatives_ranking of all directions": lb.get_loss(
        "multiple_negatives_ranking", query_to_query=True, document_to_document=True, hardness_strength=5.0
    ),
    "score_kl": lb.get_loss("score_kl"),
    "ntxent": lb.get_loss("ntxent"),
    "siglip": lb.get_loss("siglip"),
    "triplet": lb.get_loss("triplet"),
    "matryoshka": lb.matryoshka("info_nce", dims=(16, 4)),
    "matryoshka over pairs": lb.matryoshka("cosine_similarity", dims=(8, 16)),
    "adaptive_layer": lb.adaptive_layer("info_nce", layers=(0, 1), kl_temperature=1.0),
    "adaptive_layer over pairs": lb.adaptive_layer("cosine_similarity", layers=(1,)),
    "matryoshka_2d": lb.matryoshka_2d("cosent", layers=(1,), dims=(16, 4)),
    "adaptive_layer beside vectors of tokens": lb.adaptive_layer("triplet", layers=(1,)) + lb.get_loss("maxsim"),
    "maxsim beside vectors of texts": lb.get_loss("maxsim") + lb.get_loss("info_nce") + 0.1 * lb.get_loss("gor"),
    "a mixture": lb.get_loss("cosent") + 0.5 * lb.get_loss("angle"),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_an_encoders_gradient_does_not_depend_on_how_the_batch_is_cut(
    loss: Any, make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    datums = [
        lb.Datum(
            d.model_input,
            {
                **{"label": float(i // 2 % 3 == 0), "teacher_score": i / 8, "document_id": i % 5, "class_id": i % 4},
                "guide_embedding": [1.0, i / 8, (i % 3) - 1.0],
                "teacher_embedding": [(i * j % 7) - 3.0 for j in range(1, 65)],
                "weights": [float(t % 3 != i % 3) for t in range(d.model_input.length)],
            },
        )
        for i, d in enumerate(make_datums(12))
    ]
    assert_same_however_cut("tiny-encoder", datums, loss, "mean", gradients_of)


@pytest.mark.parametrize("settings", [{"checkpoint_layers": True}, {"batching": "single"}], ids=str)
def test_vectors_of_layers_have_the_same_gradient_however_layers_run(
    make_datums: MakeDatums, gradients_of: GradientsOf, settings: dict[str, Any]
) -> None:
    datums, loss, found = make_datums(8), lb.adaptive_layer("info_nce", layers=(1, 0)), []
    for own in ({}, settings):
        client = lb.ServiceClient(device="cpu", dtype=torch.float64, **own).create_training_client("tiny")
        found.append((client.forward_backward(datums, loss).result().metrics["loss:sum"], gradients_of(client)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-8, atol=1e-11)


SPARSE = lb.get_loss("multiple_negatives_ranking", similarity="dot", scale=1.0) + 0.03 * lb.get_loss("flops")


def test_vectors_over_the_vocabulary_train_a_decoder_beside_its_logprobs(
    make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    datums = make_datums(8)
    assert_same_however_cut("tiny", datums, SPARSE, "splade", gradients_of)
    assert_same_however_cut("tiny", datums, SPARSE + 0.1 * lb.get_loss("cross_entropy"), "splade", gradients_of)


def test_vectors_over_the_vocabulary_train_an_encoder_with_its_masked_lm_head(
    make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    assert_same_however_cut("tiny-encoder", make_datums(8), SPARSE, "splade", gradients_of)


def test_a_vector_over_the_vocabulary_is_the_largest_of_its_tokens(make_datums: MakeDatums) -> None:
    service = lb.ServiceClient(device="cpu", dtype=torch.float64)
    client = service.create_training_client("tiny")
    datums = make_datums(4)
    vectors = [
        one["embedding"].to_torch() for one in client.forward(datums, SPARSE, pooling="splade").result().loss_fn_outputs
    ]
    module = load_model("tiny", device="cpu", dtype=torch.float64).module
    for datum, vector in zip(datums, vectors, strict=True):
        logits = module(torch.tensor([datum.model_input.to_ints()])).logits[0]
        torch.testing.assert_close(vector.double(), logits.relu().log1p().amax(0).detach(), rtol=1e-6, atol=1e-6)


def test_an_encoder_has_no_logits_to_pool(make_datums: MakeDatums) -> None:
    client = lb.ServiceClient(device="cpu").create_training_client("tiny-encoder")
    with pytest.raises(
        lb.errors.ModelError, match="reads the logits of a language model, and tiny-encoder is an encoder"
    ):
        client.forward_backward(make_datums(4), SPARSE, pooling="splade").result()


def assert_same_however_cut(
    base_model: str, datums: list[lb.Datum], loss: Any, pooling: Any, gradients_of: GradientsOf
) -> None:
    """The gradient in one micro-batch, in several, and computed twice."""
    whole, outputs = [], []
    for settings in ({}, {"tokens_per_micro_batch": 24}, {"tokens_per_micro_batch": 24, "kept_graph_tokens": 1}):
        service = lb.ServiceClient(device="cpu", dtype=torch.float64, **settings)
        client = service.create_training_client(base_model, masked_lm_head=pooling == "splade")
        outputs.append(client.forward_backward(datums, loss, pooling=pooling).result().metrics)
        whole.append(gradients_of(client))
    assert outputs[0]["micro_batches"] == 1 < outputs[1]["micro_batches"]
    assert outputs[2]["forward_passes"] == (2 if loss.couples == "batch" else 1)
    assert any(bool((gradient != 0).any()) for gradient in whole[0].values())
    for metrics, gradients in zip(outputs[1:], whole[1:], strict=True):
        assert metrics["loss:sum"] == pytest.approx(outputs[0]["loss:sum"], rel=1e-9)
        for name, gradient in whole[0].items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-8, atol=1e-11)
