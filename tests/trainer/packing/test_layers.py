"""Hidden states of layers: those of a model that is cut off there, in every way that sequences run, with their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import lossbook as lb
from lossbook import adaptive_layer
from lossbook.datums.errors import ModelError
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.packing.hidden import choose_batching, hidden_states
from lossbook.trainer.packing.layers import repeated_parts

from ..kinds import KINDS, model_of

ENCODERS: dict[str, Any] = {
    "BERT": lambda: transformers.BertConfig(**ENCODER),
    "ModernBERT": lambda: transformers.ModernBertConfig(**ENCODER, pad_token_id=0),
    "DistilBERT": lambda: transformers.DistilBertConfig(vocab_size=96, dim=32, n_layers=2, n_heads=4, hidden_dim=48),
    "MPNet": lambda: transformers.MPNetConfig(**ENCODER),
}
ENCODER: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TEACHER = {"teacher_embedding": [1.0] * 64}
SEQUENCES = [np.array(tokens) for tokens in ([3, 5, 7, 11, 13], [3, 5], [90, 2, 4, 6, 8, 10, 12])]


def encoder_of(config: Any) -> LoadedModel:
    torch.manual_seed(0)
    module = transformers.AutoModel.from_config(config).eval().double()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
            else:  # norms that do something
                parameter.add_(torch.randn_like(parameter) / 4)
    return LoadedModel(config.model_type, module, None, "encoder", torch.device("cpu"))


@contextmanager
def cut_after(model: LoadedModel, count: int) -> Iterator[None]:
    """The model with its first layers alone."""
    holder, name, layers = next(
        (module, name, child)
        for module in model.backbone.modules()
        for name, child in module.named_children()
        if isinstance(child, torch.nn.ModuleList) and list(child) == repeated_parts(model)
    )
    setattr(holder, name, layers[:count])
    try:
        yield
    finally:
        setattr(holder, name, layers)


def assert_those_of_shorter_models(model: LoadedModel, batching: Any) -> None:
    layers = (1, 0)
    states = hidden_states(model, SEQUENCES, batching, layers=layers)
    width = states.shape[1] // 3
    torch.testing.assert_close(states[:, :width], hidden_states(model, SEQUENCES, batching))
    for i, count in enumerate(layers):
        with cut_after(model, count):
            wanted = hidden_states(model, SEQUENCES, batching)
        torch.testing.assert_close(states[:, (i + 1) * width : (i + 2) * width], wanted)


@pytest.mark.parametrize("kind", ["grouped queries", "learned positions", "a window", "a state along the row"])
def test_a_decoder_gives_what_it_would_end_with_after_each_layer(kind: str) -> None:
    model = model_of(KINDS[kind]())
    assert_those_of_shorter_models(model, choose_batching(model, None))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "rotation" not in kind])
def test_every_kind_of_decoder_does(kind: str) -> None:
    model = model_of(KINDS[kind]())
    assert_those_of_shorter_models(model, choose_batching(model, None))
    assert_those_of_shorter_models(model, "single")


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_gives_what_it_would_end_with_after_each_layer(kind: str) -> None:
    for batching in ("padded", "single"):
        assert_those_of_shorter_models(encoder_of(ENCODERS[kind]()), batching)


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_embeddings_of_a_layer_are_those_of_the_shorter_model(pooling: Any) -> None:
    datums = [lb.Datum(lb.ModelInput.from_ints(tokens.tolist()), TEACHER) for tokens in SEQUENCES]
    client = lb.ServiceClient(device="cpu", dtype=torch.float64).create_training_client("tiny-encoder")
    loss = adaptive_layer("embedding_distill", layers=(1,))
    outputs = client.forward(datums, loss, pooling=pooling).result().loss_fn_outputs
    short = load_model("tiny-encoder", device="cpu", dtype=torch.float64)
    with cut_after(short, 1):
        for datum, output in zip(datums, outputs, strict=True):
            tokens = torch.tensor([datum.model_input.to_ints()])
            states = short.module(tokens).last_hidden_state[0]
            wanted = {"mean": states.mean(0), "last": states[-1], "cls": states[0]}[pooling]
            torch.testing.assert_close(output["layer_embeddings"].to_torch()[0], wanted.detach().float())


def test_layers_that_a_model_does_not_have_are_refused_before_any_forward() -> None:
    datums = [lb.Datum(lb.ModelInput.from_ints([1, 2]), TEACHER)]
    client = lb.ServiceClient(device="cpu").create_training_client("tiny-encoder")
    message = "reads embeddings of layer 2, but tiny-encoder has the layers 0 to 1 below its last one"
    with pytest.raises(ModelError, match=message):
        client.forward_backward(datums, adaptive_layer("embedding_distill", layers=(0, 2))).result()
    client = lb.ServiceClient(device="cpu").create_training_client("tiny")
    with pytest.raises(ModelError, match="pooling 'splade' is of the last layer's logits"):
        client.forward_backward(datums, adaptive_layer("embedding_distill", layers=(0,)), pooling="splade").result()
