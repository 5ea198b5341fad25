"""A whole model written for transformers: what it computes there is what it computed here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lossbook as lb

TEXTS = [list(b"The sky is blue."), list(b"A stone sinks in water, wood does not.")]


def trained(base_model: str, **how: Any) -> lb.TrainingClient:
    """A client three steps away from where it began."""
    service = lb.ServiceClient()
    if how:
        training = service.create_lora_training_client(base_model, rank=4, seed=0, **how)
    else:
        training = service.create_training_client(base_model)
    for _ in range(3):
        if base_model == "tiny":
            data = [lb.datum_from_tokens_weights(text, [1.0] * len(text)) for text in TEXTS]
            training.forward_backward(data, "cross_entropy").result()
        else:
            data = [lb.Datum(lb.ModelInput.from_ints(text), {}) for text in TEXTS * 2]
            training.forward_backward(data, "ntxent").result()
        training.optim_step(lb.AdamParams(learning_rate=1e-2)).result()
    return training


@pytest.mark.parametrize("how", [{}, {"train_unembed": True}], ids=["all weights", "adapters"])
def test_a_decoder_gives_the_same_logprobs_in_transformers(tmp_path: Path, how: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    training = trained("tiny", **how)
    data = [lb.datum_from_tokens_weights(text, [1.0] * len(text)) for text in TEXTS]
    before = [output["logprobs"].data for output in training.forward(data).result().loss_fn_outputs]
    training.export_model(tmp_path).result()
    after = [output["logprobs"].data for output in training.forward(data).result().loss_fn_outputs]
    assert after == before  # exporting changes nothing
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).encode("The") == list(b"The")
    for text, ours in zip(TEXTS, before, strict=True):
        with torch.no_grad():
            theirs = loaded(torch.tensor([text[:-1]])).logits[0].log_softmax(-1)
        expected = theirs.gather(1, torch.tensor(text[1:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(ours), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", [{}, {"train_mlp": True}], ids=["all weights", "adapters"])
def test_an_encoder_gives_the_same_embeddings_in_transformers(tmp_path: Path, how: dict[str, Any]) -> None:
    from transformers import AutoModel

    training = trained("tiny-encoder", **how)
    data = [lb.Datum(lb.ModelInput.from_ints(text), {}) for text in TEXTS * 2]
    ours = training.forward(data, "ntxent", pooling="mean").result().loss_fn_outputs
    training.export_model(tmp_path).result()
    loaded = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    for text, output in zip(TEXTS, ours, strict=False):
        with torch.no_grad():
            theirs = loaded(torch.tensor([text])).last_hidden_state[0].mean(0)
        torch.testing.assert_close(output["embedding"].to_torch(), theirs, atol=1e-5, rtol=1e-5)
