"""What a loss's function is called with, of which type, and what becomes of what it returns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook import Datum, get_loss
from lossbook.datums.errors import LossContractError
from lossbook.losses import Seqs

from ..cases import datum, evaluated, leaves, loss_of

NAN = math.nan


def test_of_several_inputs_changed_in_place_the_first_is_named() -> None:
    def careless(logprobs: Tensor, advantages: Tensor, ref_logprobs: Tensor) -> Tensor:
        return -logprobs * advantages.mul_(2.0) + ref_logprobs.mul_(0.0)

    with pytest.raises(LossContractError, match=r"^careless changes its advantages in place, which other losses"):
        loss_of(careless)([datum(1, advantages=[1.0], ref_logprobs=[-1.0])], [torch.tensor([-1.0])])


def test_whole_numbers_that_a_loss_returns_are_weighed_as_they_are() -> None:
    def hits(logprobs: Tensor, entropy: Tensor) -> Tensor:
        return (logprobs.detach() < -1).long()

    def likely(logprobs: Tensor) -> Tensor:
        return logprobs.detach() < -1

    data = [datum(3, weights=[0.5, 0.25, 0.5])]
    row = torch.tensor([-2.0, -3.0, -0.5])
    assert float(loss_of(likely)(data, [row])[0]) == 0.75
    for first, second in ((torch.float64, torch.float32), (torch.float32, torch.float64)):
        total, _ = loss_of(hits)(data, {"logprobs": [row.to(first)], "entropy": [row.to(second)]})
        assert (float(total), total.dtype) == (0.75, first)


def test_inputs_are_of_the_first_outputs_precision() -> None:
    seen: dict[str, torch.dtype] = {}

    def spy(entropy: Tensor, logprobs: Tensor, advantages: Tensor, seqs: Seqs) -> Tensor:
        seen.update(advantages=advantages.dtype, seqs=seqs.dtype)
        return -logprobs * advantages + entropy

    outputs = {"entropy": [torch.ones(1, dtype=torch.float64)], "logprobs": [torch.ones(1) - 2]}
    loss_of(spy)([datum(1, advantages=[1.0])], outputs)
    assert seen == {"advantages": torch.float64, "seqs": torch.float64}


def test_a_loss_that_reads_weights_may_read_embeddings_too() -> None:
    def of_all(logprobs: Tensor, embeddings: Tensor, weights: Tensor, seqs: Seqs) -> Tensor:
        return -seqs.sum(weights * logprobs) * embeddings.sum(1)

    loss = loss_of(of_all, per="datum", reduction="sum")
    data = [datum(2, weights=[0, 1]), datum(1, weights=[2])]
    total, _ = loss(data, {"logprobs": leaves([[NAN, -1.0], [-3.0]]), "embeddings": leaves([[1.0, 2.0], [4.0, 1.0]])})
    # In a loss per datum `seqs` weighs too: (1 x 1 x 1) 3 + (2 x 2 x 3) 5.
    assert float(total.detach()) == 3 + 60


def test_the_shape_of_a_loss_per_token_is_that_of_its_first_output() -> None:
    def smooth(logprobs: Tensor, entropy: Tensor, weights: Tensor) -> Tensor:
        return -weights * (logprobs + entropy.unsqueeze(1))

    data = [datum([[1, 2], [3, 4]], weights=[[1, 0.5], [0, 1]])]
    total, _ = loss_of(smooth)(
        data, {"logprobs": leaves([[[-1.0, -2.0], [NAN, -4.0]]]), "entropy": leaves([[0.5, 0.25]])}
    )
    assert float(total.detach()) == 0.5 + 0.75 + 3.75


def test_a_loss_over_candidates_that_reads_weights_sees_absent_ones_as_they_are() -> None:
    seen: list[Any] = []

    def spy(logprobs: Tensor, teacher_logprobs: Tensor, weights: Tensor) -> Tensor:
        seen.append(logprobs.tolist())
        return torch.where(teacher_logprobs > -torch.inf, -logprobs, 0).sum(1) * weights

    data = [datum([[1, 2], [3, 4]], weights=[1.0, 0.0], teacher_logprobs=[[0.0, -math.inf], [-1.0, -1.0]])]
    loss_of(spy, candidates="teacher_logprobs")(data, [torch.tensor([[-3.0, -math.inf], [NAN, -5.0]])])
    assert seen == [[[-3, -math.inf], [0, -5]]]


def test_a_bare_list_is_the_first_output() -> None:
    def of_two(logprobs: Tensor, entropy: Tensor) -> Tensor:
        return -logprobs - entropy

    with pytest.raises(LossContractError, match=r"^the loss reads 'entropy', which these outputs do not hold$"):
        loss_of(of_two)([datum(1)], [torch.tensor([-1.0])])


def test_a_mixture_of_losses_over_embeddings_reads_no_position() -> None:
    mixture = get_loss("info_nce") + get_loss("ntxent")
    data = [Datum([1, 2], {})] * 2
    assert mixture.active(data).tolist() == []
    value, _, _ = evaluated(mixture, data, [[1.0, 0.0], [0.6, 0.8]])
    assert value == pytest.approx(0, abs=1e-12)


def test_the_total_of_a_mixture_of_one_has_no_dimension_and_of_two_has_one() -> None:
    one = get_loss("cross_entropy")
    data, rows = [datum(2)], [torch.tensor([-1.0, -2.0])]
    assert (2 * one).terms(data, rows)[0].tolist() == 6
    assert (2 * one + get_loss("reinforce")).terms([datum(2, advantages=[1.0, 0.5])], rows)[0].tolist() == [6, 2]


@pytest.mark.parametrize(
    ("loss", "is_mean"),
    [
        (lambda: get_loss("cross_entropy"), False),
        (lambda: get_loss("cross_entropy", reduction="token-mean"), True),
        (lambda: get_loss("dpo"), True),
        (lambda: get_loss("cross_entropy") + get_loss("ppo", reduction="sum"), False),
        (lambda: get_loss("cross_entropy") + get_loss("dpo"), True),
    ],
)
def test_a_loss_is_a_mean_where_any_part_is_divided(loss: Any, is_mean: bool) -> None:
    assert loss().is_mean is is_mean


def test_values_of_a_loss_are_one_per_row_in_order() -> None:
    # siglip: a query's sum over the documents, not a document's over the queries.
    rows = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]
    values = get_loss("siglip", scale=1.0, bias=0.0).values([Datum([0], {})] * 4, [torch.tensor(row) for row in rows])
    both, half = math.log1p(math.exp(-1)) + math.log1p(math.exp(1)), math.log(2)
    assert values.tolist() == pytest.approx([both, 2 * half])


def test_the_likeliest_tokens_of_no_position_are_as_many_as_are_read() -> None:
    data, loss = [datum(1, weights=[0.0])], get_loss("eaft", top_k=2)
    outputs = {"logprobs": [torch.zeros(1)], "topk_logprobs": [torch.full((1, 2), -1.0)]}
    total, metrics = loss.terms(data, outputs)
    assert float(total) == 0
    assert metrics["topk_mass"].count == 0
    assert float(loss.terms([], {"logprobs": [], "topk_logprobs": []})[0]) == 0
