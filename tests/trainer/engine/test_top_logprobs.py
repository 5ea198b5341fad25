"""A reference client's likeliest tokens, and clients of frozen weights made from a name or a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lossbook as lb
from lossbook.datums.errors import ModelError, ShapeError
from lossbook.trainer.model.tiny import VOCABULARY, build_tiny_model

TEXTS = [b"The sky is blue.", b"A", b"one two three four five six seven"]


def make_datums(weight: float = 1.0) -> list[lb.Datum]:
    """Texts of different lengths, all but the first three tokens learned."""
    rows = [[*text, 256] for text in TEXTS]
    return [lb.datum_from_tokens_weights(row, [0.0 if i < 2 else weight for i in range(len(row))]) for row in rows[::2]]


def whole(datums: list[lb.Datum]) -> list[torch.Tensor]:
    """[N, V] log-softmax of transformers' own logits."""
    model = build_tiny_model()
    with torch.no_grad():
        all_logits = [model(torch.tensor([datum.model_input.to_ints()])).logits[0] for datum in datums]
    return [logits.log_softmax(-1) for logits in all_logits]


@pytest.mark.parametrize("batching", ["packed", "padded"])
@pytest.mark.parametrize("tokens", [4096, 8])
def test_the_whole_vocabulary_is_the_softmax_of_transformers_logits(batching: Any, tokens: int) -> None:
    datums = make_datums()
    service = lb.ServiceClient(batching=batching, tokens_per_micro_batch=tokens)
    tops = service.create_reference_client(base_model="tiny").top_logprobs(datums, VOCABULARY).result()
    for datum, top, expected in zip(datums, tops, whole(datums), strict=True):
        active = datum.loss_fn_inputs["weights"].to_torch() != 0
        logprobs, tokens_found = torch.from_numpy(top.logprobs)[active], torch.from_numpy(top.tokens)[active]
        torch.testing.assert_close(logprobs, expected[active].gather(1, tokens_found), atol=1e-5, rtol=1e-5)
        assert (tokens_found.sort(1).values == torch.arange(VOCABULARY)).all()
        assert (logprobs.diff(dim=1) <= 0).all()
        assert (top.logprobs[~active.numpy()] == -np.inf).all()


def test_fewer_are_the_first_of_all() -> None:
    client = lb.ServiceClient().create_reference_client(base_model="tiny")
    (few, *_), (every, *_) = (client.top_logprobs(make_datums(), k).result() for k in (5, VOCABULARY))
    np.testing.assert_array_equal(few.tokens, every.tokens[:, :5])
    np.testing.assert_array_equal(few.logprobs, every.logprobs[:, :5])


def test_a_student_that_is_the_teacher_has_no_kl_and_no_gradient() -> None:
    service = lb.ServiceClient()
    student = service.create_training_client("tiny")
    plain = make_datums()
    tops = student.create_reference_client().top_logprobs(plain, 7).result()
    datums = [
        lb.datum_from_teacher_topk([*d.model_input.to_ints(), 256], top.tokens, top.logprobs)
        for d, top in zip(plain, tops, strict=True)
    ]
    output = student.forward_backward(datums, "topk_forward_kl").result()
    assert output.metrics["loss:sum"] == pytest.approx(0.0, abs=1e-6)
    assert output.metrics["response_tokens"] == sum((d.loss_fn_inputs["weights"].to_numpy() != 0).sum() for d in plain)
    assert student.optim_step(lb.AdamParams(learning_rate=0.0)).result().metrics["grad_norm"] < 1e-5


def test_a_reference_of_a_checkpoint_is_what_was_saved(tmp_path: Path) -> None:
    service = lb.ServiceClient(checkpoint_dir=tmp_path)
    training = service.create_lora_training_client("tiny", rank=4, seed=0, train_unembed=True)
    datums = make_datums()
    for _ in range(3):
        training.forward_backward(datums, "cross_entropy").result()
        training.optim_step(lb.AdamParams(learning_rate=1e-2)).result()
    path = training.save_state("here").result().path
    expected = [output["logprobs"].data for output in training.forward(datums).result().loss_fn_outputs]
    saved = service.create_reference_client(model_path=path).forward(datums).result().loss_fn_outputs
    base = service.create_reference_client(base_model="tiny").forward(datums).result().loss_fn_outputs
    assert [output["logprobs"].data for output in saved] == expected
    assert [output["logprobs"].data for output in base] != expected
    assert service.create_reference_client(model_path=path).get_tokenizer().encode("A") == [65]


@pytest.mark.parametrize("k", [0, VOCABULARY + 1, True, 2.0])
def test_a_k_that_cannot_be_is_refused(k: Any) -> None:
    client = lb.ServiceClient().create_reference_client(base_model="tiny")
    with pytest.raises(ShapeError, match="k must be 1 to 260, the size of tiny's vocabulary"):
        client.top_logprobs(make_datums(), k).result()


def test_an_encoder_has_no_next_tokens() -> None:
    client = lb.ServiceClient().create_reference_client(base_model="tiny-encoder")
    with pytest.raises(ModelError, match="is an encoder"):
        client.top_logprobs(make_datums(), 3).result()


def test_a_client_of_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match="create_reference_client needs model_path or base_model"):
        lb.ServiceClient().create_reference_client()


def test_cls_pooling_takes_the_first_token_and_a_misspelt_pooling_is_refused_at_once() -> None:
    training = lb.ServiceClient().create_training_client("tiny-encoder")
    datums = [lb.Datum(lb.ModelInput.from_ints(list(text)), {}) for text in TEXTS[:2] * 2]
    outputs = training.forward(datums, "info_nce", pooling="cls").result().loss_fn_outputs
    from lossbook.trainer.model.tiny import build_tiny_encoder

    with torch.no_grad():
        hidden = build_tiny_encoder()(torch.tensor([list(TEXTS[0])])).last_hidden_state[0]
    torch.testing.assert_close(outputs[0]["embedding"].to_torch(), hidden[0], atol=1e-5, rtol=1e-5)
    wrong: Any = "maen"
    for call in (training.forward, training.forward_backward, training.create_reference_client().forward):
        with pytest.raises(
            ModelError, match=r"pooling is one of 'mean', 'last', 'cls', 'splade', not 'maen'. Did you mean 'mean'"
        ):
            call(datums, "info_nce", pooling=wrong)
