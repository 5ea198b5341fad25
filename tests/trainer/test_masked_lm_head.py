"""An encoder with its masked-LM head: vectors over the vocabulary as in Sentence Transformers, in training, on disk, and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lossbook as lb
from lossbook.trainer.clients.training import TrainingClient
from lossbook.trainer.head import logprobs as head_module
from lossbook.trainer.head.sparse import splade_vectors
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.tiny import build_tiny_encoder, build_tiny_tokenizer, seeded

from .head.test_memory import LiveBytes

GradientsOf = Callable[[TrainingClient], dict[str, Tensor]]
TEXTS = [[5, 90, 7, 31, 64], [200, 11, 17], [3, 45, 99, 250], [9, 9]]
DATUMS = [lb.Datum(lb.ModelInput.from_ints(text), {}) for text in TEXTS]
SPARSE = lb.get_loss("multiple_negatives_ranking", similarity="dot", scale=1.0) + 0.03 * lb.get_loss("flops")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small BERT with its head, each parameter of the head off 0 and 1, where most begin."""
    place = tmp_path_factory.mktemp("masked")
    module: Any = build_tiny_encoder(3, masked_lm_head=True)
    with seeded(1), torch.no_grad():
        for parameter in module.cls.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    module.save_pretrained(place)
    build_tiny_tokenizer().save_pretrained(place)
    return str(place)


def client_of(folder: str, place: Path | None = None, **settings: Any) -> TrainingClient:
    service = lb.ServiceClient(device="cpu", dtype=torch.float64, checkpoint_dir=place or "checkpoints")
    return service.create_training_client(folder, masked_lm_head=True, **settings)


def vectors_of(client: TrainingClient) -> Tensor:
    outputs = client.forward(DATUMS, SPARSE, pooling="splade").result().loss_fn_outputs
    return torch.stack([output["embedding"].to_torch() for output in outputs])


@pytest.mark.slow  # imports Sentence Transformers
def test_values_and_gradients_are_those_of_a_sparse_encoder(folder: str, gradients_of: GradientsOf) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SparseEncoder(folder, device="cpu").double().train()
    lengths = torch.tensor([len(text) for text in TEXTS])
    width = int(lengths.max())
    features = {
        "input_ids": torch.tensor([text + [257] * (width - len(text)) for text in TEXTS]),
        "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
    }
    wanted = theirs(features)["sentence_embedding"]
    queries, documents = wanted.split(2)
    ranking = torch.nn.functional.cross_entropy(queries @ documents.T, torch.arange(2))
    flops = sum(side.abs().mean(0).square().sum() for side in (queries, documents))
    total = ranking + 0.03 * flops
    total.backward()
    client = client_of(folder)
    torch.testing.assert_close(vectors_of(client).double(), wanted.detach(), rtol=1e-6, atol=1e-6)
    loss = client.forward_backward(DATUMS, SPARSE, pooling="splade").result().metrics["loss:sum"]
    assert loss == pytest.approx(total.item(), rel=1e-9)
    own = {name: p.grad for name, p in theirs[0].model.named_parameters()}
    gradients = gradients_of(client)
    assert gradients.keys() == own.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, own[name], rtol=1e-8, atol=1e-12)
    assert all(gradients[f"cls.predictions.{name}"].any() for name in ("bias", "transform.dense.weight"))


def test_vectors_are_those_of_the_modules_own_logits(folder: str) -> None:
    module = load_model(folder, device="cpu", dtype=torch.float64, masked_lm_head=True).module
    wanted = torch.stack([module(torch.tensor([text])).logits[0].relu().log1p().amax(0) for text in TEXTS])
    torch.testing.assert_close(vectors_of(client_of(folder)).double(), wanted.detach(), rtol=1e-6, atol=1e-6)


def test_no_logits_of_all_tokens_are_ever_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BertConfig, BertForMaskedLM

    monkeypatch.setitem(head_module.TILE_BYTES, "cpu", 2**16)
    vocabulary, tokens, sizes = 20_000, 512, [256] * 2
    config = BertConfig(vocab_size=vocabulary, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    module = BertForMaskedLM(config).eval()
    model = load_model("tiny-encoder", device="cpu", masked_lm_head=True)
    model.module = module
    hidden = torch.randn(tokens, 8, requires_grad=True)
    with LiveBytes(hidden, *module.parameters()) as live:
        splade_vectors(model.before_head(hidden), model.head(masked_lm=True), sizes).sum().backward()
    assert live.peak < 4 * tokens * vocabulary / 5


def test_the_tiny_encoder_is_the_same_below_its_head() -> None:
    plain, whole = (load_model("tiny-encoder", device="cpu", masked_lm_head=has) for has in (False, True))
    own = whole.backbone.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in plain.module.state_dict().items())
    assert not plain.has_head
    assert load_model("tiny", device="cpu", masked_lm_head=True).masked_lm_head is False, (
        "a decoder has its head anyway"
    )


def test_a_client_resumes_from_its_checkpoint(folder: str, tmp_path: Path) -> None:
    client = client_of(folder, tmp_path)
    client.forward_backward(DATUMS, SPARSE, pooling="splade").result()
    client.optim_step(lb.AdamParams(learning_rate=1e-3)).result()
    path = client.save_state("one").result().path
    service = lb.ServiceClient(device="cpu", dtype=torch.float64, checkpoint_dir=tmp_path)
    again = service.create_training_client_from_state(path, optimizer=True)
    assert again.get_info().masked_lm_head
    assert torch.equal(vectors_of(again), vectors_of(client))
    frozen = service.create_reference_client(model_path=client.save_weights_for_sampler("two").result().path)
    outputs = frozen.forward(DATUMS, SPARSE, pooling="splade").result().loss_fn_outputs
    assert torch.equal(torch.stack([output["embedding"].to_torch() for output in outputs]), vectors_of(client))
    with pytest.raises(
        lb.errors.CheckpointError, match="saved from an encoder with its masked-LM head, but this model is"
    ):
        service.create_training_client(folder).load_state(path).result()


@pytest.mark.parametrize("adapted", [False, True])
def test_an_export_loads_with_its_head(folder: str, tmp_path: Path, adapted: bool) -> None:
    lora = {"lora_rank": 2, "seed": 0, "train_unembed": True} if adapted else {}
    client = client_of(folder, **lora)
    for _ in range(2):
        client.forward_backward(DATUMS, SPARSE, pooling="splade").result()
        client.optim_step(lb.AdamParams(learning_rate=1e-2)).result()
    client.export_model(tmp_path).result()
    torch.testing.assert_close(vectors_of(client_of(str(tmp_path))), vectors_of(client), rtol=1e-6, atol=1e-6)


def test_adapters_reach_the_head_where_they_are_asked_to(folder: str) -> None:
    targets = client_of(folder, lora_rank=2, seed=0, train_unembed=True).get_info().lora_targets
    assert "cls.predictions.decoder" in targets
    assert "bert.encoder.layer.*.intermediate.dense" in targets
    named = client_of(folder, lora_rank=2, seed=0, lora_targets=["transform.dense"]).get_info().lora_targets
    assert named == ("cls.predictions.transform.dense",)


def test_the_head_stays_as_it_is_where_it_is_not_read(folder: str, gradients_of: GradientsOf) -> None:
    client = client_of(folder)
    client.forward_backward(DATUMS, lb.get_loss("info_nce")).result()
    assert not any(gradient.any() for name, gradient in gradients_of(client).items() if name.startswith("cls."))


def test_what_has_no_head_is_refused_with_the_way_to_one(tmp_path: Path) -> None:
    build_tiny_encoder().save_pretrained(tmp_path)
    build_tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(lb.errors.ModelError, match="has no masked-LM head: name a checkpoint that was saved with one"):
        client_of(str(tmp_path))
    plain = lb.ServiceClient(device="cpu").create_training_client(str(tmp_path))
    with pytest.raises(
        lb.errors.ModelError, match="loaded without its masked-LM head: make the client with masked_lm_head=True"
    ):
        plain.forward_backward(DATUMS, SPARSE, pooling="splade").result()


def test_it_still_has_no_logprobs_of_next_tokens(folder: str) -> None:
    client = client_of(folder)
    datums = [lb.datum_from_tokens_weights(text, [1.0] * len(text)) for text in TEXTS]
    service = lb.ServiceClient(device="cpu", dtype=torch.float64)
    teacher = service.create_reference_client(folder, masked_lm_head=True)
    for call in (
        lambda: client.forward_backward(datums, "cross_entropy"),
        lambda: client.forward(datums, "cross_entropy"),
        lambda: teacher.top_logprobs(datums, 2),
        lambda: client.forward_backward(datums, "full_forward_kl", teacher=teacher),
    ):
        with pytest.raises(lb.errors.LossbookError, match="is an encoder"):
            call().result()
