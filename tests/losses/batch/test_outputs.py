"""The model's outputs as a loss receives them: rows of the datums that count, their types, and where one is wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lossbook import Datum, get_loss
from lossbook.datums.errors import (
    DtypeError,
    InvalidLogprobError,
    LengthMismatchError,
    LossContractError,
    NonFiniteLossInput,
    ShapeError,
)
from lossbook.losses import Seqs
from lossbook.losses.batch.outputs import Outputs

from ..cases import assert_rows_equal, datum, evaluated, leaves, loss_of

NAN = math.nan


def of_both(logprobs: Tensor, embeddings: Tensor, seqs: Seqs) -> Tensor:
    return embeddings[:, 0] * 10 - seqs.sum(logprobs)


@pytest.mark.parametrize(("masked", "value"), [((), 10 * 7 + 7), ((1,), 10 * 5 + 5), ((0, 2), 10 * 2 + 2)])
def test_embeddings_of_wholly_masked_datums_are_left_out(masked: tuple[int, ...], value: float) -> None:
    data = [datum(1, weights=[float(i not in masked)]) for i in range(3)]
    outputs = {"logprobs": leaves([[-1.0], [-2.0], [-4.0]]), "embeddings": leaves([[1.0, 0], [2.0, 0], [4.0, 0]])}
    total, _ = loss_of(of_both, per="datum", reduction="sum")(data, outputs)
    assert total.item() == value


def test_lists_of_numbers_are_float32_and_arrays_keep_their_type(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def spy(logprobs: Tensor) -> Tensor:
        seen.append(logprobs.dtype)
        return -logprobs

    loss = loss_of(spy)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        given = ([-1.0, -2.0], np.array([-1.0, -2.0]), np.array([-1, -2], dtype=np.float32), [-1, -2])
        assert [float(loss([datum(2)], [one])[0]) for one in given] == [3, 3, 3, 3]
    finally:
        torch.set_default_dtype(before)
    assert seen == [torch.float32, torch.float64, torch.float32, torch.float32]


@pytest.mark.parametrize("value", [torch.ones(1, 2), iter([[-1.0]]), 3.0, {1.0}])
def test_outputs_that_are_no_list_are_refused(value: Any) -> None:
    with pytest.raises(LossContractError) as caught:
        get_loss("cross_entropy")([datum(1)], value)
    assert str(caught.value) == (f"expected a list with one tensor of logprobs per datum, got {type(value).__name__}")


@pytest.mark.parametrize("name", ["cross_entropy", "ppo", "kto", "dpo", "topk_forward_kl", "info_nce", "cosent"])
def test_of_no_datums_a_total_is_zero(name: str) -> None:
    loss = get_loss(name)
    total, _ = loss.terms([], [])
    assert float(total) == 0
    assert total.dtype == torch.float32


def entropic(logprobs: Tensor, entropy: Tensor) -> Tensor:
    return -logprobs - entropy


def test_an_output_in_another_shape_than_its_positions_is_named() -> None:
    data = [datum([[1, 2], [3, 4]]), datum([[1, 2], [3, 4]])]
    outputs = {"logprobs": [-torch.ones(2, 2)] * 2, "entropy": [torch.ones(2), torch.ones(2, 2)]}
    with pytest.raises(ShapeError) as caught:
        loss_of(entropic)(data, outputs)
    assert str(caught.value) == "datum 1 of 2: entropy is [2, 2] but its targets ask for [2]"
    with pytest.raises(ShapeError) as caught:
        get_loss("cross_entropy")([Datum([1, 2], {})], [-torch.ones(2, 1)])
    assert str(caught.value) == "datum 0 of 1: logprobs is [2, 1] but its targets ask for [2]"
    with pytest.raises(LengthMismatchError, match=r"^datum 1 of 2 has 2 positions but 3 entropy$"):
        loss_of(entropic)(data, {**outputs, "entropy": [torch.ones(2), torch.ones(3)]})
    with pytest.raises(DtypeError, match=r"^logprobs of datum 1 are torch.complex64: a loss reads real numbers$"):
        get_loss("cross_entropy")([datum(1)] * 2, [-torch.ones(1), torch.ones(1, dtype=torch.complex64)])


def weighs_candidates(logprobs: Tensor, teacher_logprobs: Tensor, weights: Tensor) -> Tensor:
    present = teacher_logprobs > -torch.inf
    return -weights * torch.where(present, torch.where(present, logprobs, 0) * teacher_logprobs.exp(), 0).sum(1)


def test_an_absent_candidate_may_be_impossible_for_the_model_also_where_the_loss_reads_weights() -> None:
    loss = loss_of(weighs_candidates, candidates="teacher_logprobs")
    data = [datum([[1, 2], [3, 4]], weights=[2.0, 1.0], teacher_logprobs=[[0.0, -math.inf], [-math.inf, 0.0]])]
    value, gradients, _ = evaluated(loss, data, [[[-3.0, -math.inf], [NAN, -5.0]]])
    assert value == 11
    assert_rows_equal(gradients, [[[-2, 0], [0, -1]]], 0)
    with pytest.raises(NonFiniteLossInput, match="the model's logprobs of datum 0 are -inf at position 1, where"):
        evaluated(loss, data, [[[-3.0, -4.0], [-5.0, -math.inf]]])


def own_weights(logprobs: Tensor, weights: Tensor) -> Tensor:
    return -torch.where(weights != 0, weights * logprobs, 0)


@pytest.mark.parametrize("loss", [lambda: get_loss("cross_entropy"), lambda: loss_of(own_weights)])
def test_a_logprob_above_0_may_stand_where_nothing_has_a_weight(loss: Any) -> None:
    for targets, weights, row in (
        (2, [0, 1], [7.0, -1.0]),
        ([[1, 2], [3, 4]], [[0, 1], [0, 2]], [[7.0, -1.0], [5.0, -2.0]]),
    ):
        value = evaluated(loss(), [datum(targets, weights=weights)], [row])[0]
        assert value == (1 if targets == 2 else 5)
        with pytest.raises(InvalidLogprobError, match="logprobs of datum 0 are 7 at position 0"):
            evaluated(loss(), [datum(targets, weights=[1, 1] if targets == 2 else [[1, 1]] * 2)], [row])


def test_of_several_embeddings_that_are_no_numbers_the_first_is_named() -> None:
    rows = [[1.0, 0.0], [NAN, 1.0], [0.0, 1.0], [NAN, 1.0]]
    with pytest.raises(NonFiniteLossInput, match=r"^info_nce: the model's embeddings of datum 1 are nan"):
        evaluated(get_loss("info_nce"), [Datum([0], {})] * 4, rows)
    with pytest.raises(NonFiniteLossInput, match=r"^info_nce: the model's embeddings of datum 0 are inf"):
        evaluated(get_loss("info_nce"), [Datum([0], {})] * 4, [[1.0, math.inf], *rows[1:]])


def test_one_logprob_a_position_is_the_only_target_beside_datums_of_several() -> None:
    data = [datum(2, weights=[1, 1]), datum([[1, 2], [3, 4]], weights=[[1, 1], [1, 1]])]
    value, gradients, _ = evaluated(get_loss("cross_entropy"), data, [[-1.0, -2.0], [[-3.0, -4.0], [-5.0, -6.0]]])
    assert value == 3 + 18
    assert_rows_equal(gradients[:1], [[-1, -1]], 0)


def over_all(vocab_logprobs: Tensor) -> Tensor:
    return -vocab_logprobs[:, 0]


def test_a_token_of_a_table_may_be_ruled_out_and_no_log_probability_is_above_0() -> None:
    data = [datum(2, weights=[1, 1])]
    loss = loss_of(over_all, reduction="sum")
    good = [[-0.5, -1.0, -math.inf], [-2.0, -math.inf, -0.25]]
    assert float(loss(data, {"vocab_logprobs": [torch.tensor(good)]})[0]) == 2.5
    for odd, error in ((0.5, InvalidLogprobError), (math.inf, NonFiniteLossInput), (NAN, NonFiniteLossInput)):
        wrong = torch.tensor(good)
        wrong[1, 1] = odd
        with pytest.raises(error, match=r"vocab_logprobs of datum 0 are .* at position 1"):
            loss(data, {"vocab_logprobs": [wrong]})


def test_whole_distributions_are_checked_by_the_size_of_what_makes_them() -> None:
    # one number a position, which is finite where all of the row are, and may be above 0
    bound = loss_of(over_all, reduction="sum").prepare([datum(2, weights=[1, 1])])
    bound.check_outputs(Outputs(vocab_logprobs=torch.tensor([5.0, 0.0])))
    for odd in (NAN, math.inf):
        with pytest.raises(NonFiniteLossInput, match=f"vocab_logprobs of datum 0 are {odd} at position 1"):
            bound.check_outputs(Outputs(vocab_logprobs=torch.tensor([5.0, odd])))
