"""Losses over a teacher's candidates in the trainer: [N, K] targets under one weight a position, however they are cut."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import lossbook as lb
from lossbook.losses.math.divergences import forward_kl, with_tail
from lossbook.trainer.clients.training import TrainingClient

Gradients = dict[str, Tensor]
GradientsOf = Callable[[TrainingClient], Gradients]
VOCABULARY = 260
SETTINGS = {"tail": "bin", "reduction": "token-mean"}


def client(dtype: torch.dtype = torch.float64, **settings: object) -> TrainingClient:
    return lb.ServiceClient(device="cpu", dtype=dtype, **settings).create_training_client("tiny")


def teacher_datums() -> list[lb.Datum]:
    """K differs from datum to datum, the last candidate of some positions is absent, prompts have weight 0."""
    rng = np.random.default_rng(0)
    datums = []
    for length, width in ((5, 3), (9, 1), (7, 4)):
        logits = rng.normal(0, 2, (length, VOCABULARY))
        logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        ids = np.argsort(-logprobs, axis=1)[:, :width]
        kept = np.take_along_axis(logprobs, ids, axis=1)
        if width > 1:
            kept[2::3, -1] = -np.inf
        weights = np.where(np.arange(length) < 2, 0.0, rng.uniform(0.25, 2.0, length))
        datums.append(lb.datum_from_teacher_topk(rng.integers(0, VOCABULARY, length + 1), ids, kept, weights))
    return datums


def dense_gradient(training: TrainingClient, datums: list[lb.Datum]) -> tuple[float, Gradients]:
    """Value and gradient by way of the whole log-softmax."""
    module = training.local.model.module
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for datum in datums:
        targets, teacher, weights = (
            datum.loss_fn_inputs[key].to_torch() for key in ("target_tokens", "teacher_logprobs", "weights")
        )
        logprobs = module(torch.tensor([datum.model_input.to_ints()])).logits[0].double().log_softmax(-1)
        present = teacher > -torch.inf
        compared = [with_tail(x, present, "bin") for x in (logprobs.gather(1, targets), teacher.double())]
        total = total + (weights * forward_kl(*compared)).sum()
        weight += float(weights.sum())
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad(total / weight, list(parameters.values()))
    return float(total.detach() / weight), dict(zip(parameters, gradients, strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="in one piece"),
        pytest.param({"tokens_per_micro_batch": 1}, id="a datum at a time"),
        pytest.param({"batching": "packed"}, id="packed"),
    ],
)
def test_a_loss_over_candidates_has_the_dense_gradient_however_cut(
    settings: dict[str, object], gradients_of: GradientsOf
) -> None:
    training, datums = client(**settings), teacher_datums()
    output = training.forward_backward(datums, "topk_forward_kl", SETTINGS).result()
    value, expected = dense_gradient(training, datums)
    gradients = gradients_of(training)
    # transformers' RMSNorm computes in float32 also in a float64 model
    assert output.metrics["loss:sum"] == pytest.approx(value, rel=1e-6)
    for name, gradient in expected.items():
        assert float((gradients[name] - gradient).norm()) <= 1e-6 * float(gradient.norm()) + 1e-12
    assert [o["logprobs"].shape for o in output.loss_fn_outputs] == [[5, 3], [9, 1], [7, 4]]


def test_numbers_of_a_call_do_not_depend_on_how_it_is_cut() -> None:
    datums = teacher_datums()
    whole, cut = (
        client(**settings).forward_backward(datums, "topk_forward_kl", SETTINGS).result().metrics
        for settings in ({}, {"tokens_per_micro_batch": 1})
    )
    assert cut.pop("micro_batches") == 3
    whole.pop("micro_batches")
    assert cut == pytest.approx(whole, rel=1e-9)
    assert "nll" not in whole  # none of the candidates is the one to be likely
    assert whole["response_tokens"] == 3 + 7 + 5


def test_a_forward_reports_the_same_loss_and_all_candidates() -> None:
    training, datums = client(torch.float32), teacher_datums()
    before = training.forward(datums, "topk_jsd").result()
    after = training.forward_backward(datums, "topk_jsd").result()
    assert before.metrics["loss:sum"] == pytest.approx(after.metrics["loss:sum"], rel=1e-5)
    assert before.metrics["teacher_mass"] == pytest.approx(after.metrics["teacher_mass"])
    assert all(bool((o["logprobs"].to_torch() < 0).all()) for o in before.loss_fn_outputs)


def test_candidates_beyond_the_vocabulary_are_refused_where_they_count() -> None:
    with pytest.raises(lb.errors.TokenRangeError, match="target_tokens holds 300 at position 0, column 1"):
        client().forward_backward([lb.datum_from_teacher_topk([1, 2], [[3, 300]], [[-1.0, -2.0]])], "sdft").result()
