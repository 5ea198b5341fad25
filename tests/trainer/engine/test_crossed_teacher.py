"""A teacher with another tokenizer through the engine, against the same from dense logits of both models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lossbook import Datum, ServiceClient, datum_from_tokens_weights, get_loss
from lossbook.datums.builders.alignment import with_teacher_positions
from lossbook.datums.builders.pieces import Pieces
from lossbook.datums.builders.vocabularies import renumbering
from lossbook.datums.errors import ModelError
from lossbook.trainer.head import whole

from ...datums.builders.other_tokenizers import save_model

TEXTS = [("that ", "the cats said"), ("a ", "hat is the naïve cat's"), ("", "what cats")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A student of bytes, a teacher of byte pairs in a folder of its own, and the teacher's module."""
    folder = tmp_path_factory.mktemp("teacher")
    save_model(folder)
    service = ServiceClient(dtype=torch.float64)
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    student = service.create_training_client("tiny")
    return {"student": student, "teacher": service.create_reference_client(base_model=str(folder)), "module": module}


def crossed(models: dict[str, Any]) -> list[Datum]:
    """Datums of the texts, prompt and answer, as both read them."""
    tokenizers = [models[key].get_tokenizer() for key in ("student", "teacher")]
    made = []
    for prompt, answer in TEXTS:
        sides = []
        for tokenizer in tokenizers:
            before = tokenizer(f"?{prompt}")["input_ids"]
            after = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
            sides.append(datum_from_tokens_weights([*before, *after], [0.0] * len(before) + [1.0] * len(after)))
        made.append(with_teacher_positions(*sides, *map(Pieces, tokenizers))[0])
    return made


def dense(models: dict[str, Any], loss: Any, data: list[Datum]) -> torch.Tensor:
    """The loss from whole logits of transformers' own forwards, one sequence at a time."""
    student, teacher = models["student"], models["module"]
    sizes = student.local.model.vocab_size, teacher.config.vocab_size
    tokenizers = student.get_tokenizer(), models["teacher"].get_tokenizer()
    order = torch.from_numpy(renumbering(*tokenizers, *sizes))
    own, given = [], []
    for datum in data:
        ids = torch.tensor([datum.model_input.to_ints()])
        own.append(student.local.model.module(ids).logits[0].log_softmax(-1))
        read = datum.loss_fn_inputs["teacher_tokens"].to_torch()[None]
        table = teacher(read).logits[0].log_softmax(-1).detach()
        table = table[datum.loss_fn_inputs["teacher_positions"].to_torch()]
        if loss.spec.vocabularies == "renumbered":
            table = torch.where(order < 0, -torch.inf, table[:, order])
        given.append(table)
    return loss(data, {"vocab_logprobs": own, "teacher_vocab_logprobs": given})[0]


@pytest.mark.parametrize("bytes_of_a_tile", [None, 5000], ids=["one tile", "tiles"])
@pytest.mark.parametrize("name", ["gold", "uld"])
def test_value_and_gradient_are_those_of_dense_logits_of_both_models(
    models: dict[str, Any], name: str, bytes_of_a_tile: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bytes_of_a_tile is not None:
        monkeypatch.setitem(whole.WHOLE_BYTES, "cpu", bytes_of_a_tile)
    student, data, loss = models["student"], crossed(models), get_loss(name, weights="span_weights")
    assert any((d.loss_fn_inputs["teacher_positions"].to_numpy() < 0).any() for d in data)  # byte pairs lie inside
    output = student.forward_backward(data, loss, teacher=models["teacher"]).result()
    parameters = student.local.model.trainable()
    own = {key: parameter.grad.clone() for key, parameter in parameters.items()}
    student.discard_gradients().result()
    seen = student.forward(data, loss, teacher=models["teacher"]).result()
    value = dense(models, loss, data)
    gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    assert output.metrics["loss:sum"] == pytest.approx(float(value.detach()), rel=1e-9)
    assert seen.metrics["loss:sum"] == pytest.approx(output.metrics["loss:sum"], rel=1e-12)
    for (key, mine), gradient in zip(own.items(), gradients, strict=True):
        torch.testing.assert_close(mine, torch.zeros_like(mine) if gradient is None else gradient, msg=key)


def test_cross_entropy_beside_it_reads_all_answer_tokens(models: dict[str, Any]) -> None:
    student, data = models["student"], crossed(models)
    gold, nll = get_loss("gold", weights="span_weights"), get_loss("cross_entropy", reduction="token-mean")
    apart = [
        student.forward(data, gold, teacher=models["teacher"]).result().metrics["loss:sum"],
        student.forward(data, nll).result().metrics["loss:sum"],
    ]
    both = student.forward(data, gold + 0.5 * nll, teacher=models["teacher"]).result().metrics["loss:sum"]
    assert both == pytest.approx(apart[0] + 0.5 * apart[1])


def test_a_model_without_a_tokenizer_has_no_numbers_to_share(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = crossed(models)
    monkeypatch.setattr(models["student"].local.model, "tokenizer", None)
    with pytest.raises(ModelError, match="gold compares tokens by their text, but the student tiny has no tokenizer"):
        models["student"].forward(data, get_loss("gold", weights="span_weights"), teacher=models["teacher"]).result()


def test_a_loss_that_compares_token_by_token_refuses_such_a_teacher(models: dict[str, Any]) -> None:
    loss = get_loss("full_forward_kl", weights="span_weights")
    with pytest.raises(ModelError, match="or a loss across tokenizers"):
        models["student"].forward(crossed(models), loss, teacher=models["teacher"]).result()
    assert np.isfinite(models["student"].forward(crossed(models), "cross_entropy").result().metrics["loss:sum"])
