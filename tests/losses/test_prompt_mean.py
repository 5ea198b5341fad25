"""Reduction `prompt-mean`: the mean over prompts of the mean over all tokens of their answers, wherever these stand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossbook import Datum, get_loss
from lossbook.datums.errors import LabelError, MissingInput, TraceError, WeightsError
from lossbook.losses import Count
from lossbook.losses.testing import check_loss
from lossbook.losses.testing.strategies import datums, outputs

from .cases import assert_rows_equal, datum, evaluated
from .loss.test_tensors import assert_same

LOSS = get_loss("cross_entropy", reduction="prompt-mean")


def answers() -> tuple[list[Datum], list[list[float]]]:
    """Three answers to prompt 7, with an answer to prompt 2 between them; prompt 5 has no weight."""
    data = [
        datum(2, weights=[0, 1], group=7),
        datum(2, weights=[1, 3], group=2),
        datum(3, weights=[1, 1, 0.5], group=7),
        datum(1, weights=[0], group=5),
        datum(1, weights=[0.5], group=7),
    ]
    return data, [[-9.0, -1.0], [-2.0, -4.0], [-1.0, -2.0, -4.0], [-9.0], [-6.0]]


def test_each_prompt_counts_once_whatever_the_length_and_number_of_its_answers() -> None:
    data, rows = answers()
    value, gradients, _ = evaluated(LOSS, data, rows)
    # prompt 7: (1 + 1 + 2 + 0.5 x 4 + 0.5 x 6) / (1 + 2.5 + 0.5) = 9/4; prompt 2: (2 + 3 x 4) / 4 = 7/2
    assert value == pytest.approx((9 / 4 + 7 / 2) / 2)
    assert LOSS.count(data) == Count((2.0,))
    # -w / (4 x 2): each prompt's weights add up to 4
    assert_rows_equal(gradients, [[0, -1 / 8], [-1 / 8, -3 / 8], [-1 / 8, -1 / 8, -1 / 16], [0], [-1 / 16]], 1e-12)


def test_a_prompt_may_be_cut_once_the_whole_call_is_known() -> None:
    data, rows = answers()
    bound, outputs_ = LOSS.prepare(data), [torch.tensor(row, dtype=torch.float64) for row in rows]
    parts = [bound.part([i]) for i in (4, 0, 3, 2, 1)]
    totals = [part.terms([outputs_[i]])[0] for part, i in zip(parts, (4, 0, 3, 2, 1), strict=True)]
    torch.testing.assert_close(sum(totals), bound.terms(outputs_)[0])
    assert [float(part.count) for part in parts] == [0, 1, 0, 0, 1], "a group is counted where its first datum is"
    # by itself, an answer is its whole group
    assert float(LOSS.terms(data[4:], outputs_[4:])[0]) == 6.0
    assert (LOSS.couples, LOSS.cut_by) == ("group", "token")


def test_a_prompt_counts_for_a_part_only_where_that_part_s_weights_are() -> None:
    other = get_loss("cross_entropy", reduction="prompt-mean", weights="other_weights")
    rows = ((7, [1.0], [0.0]), (2, [0.0], [1.0]), (2, [1.0], [1.0]))
    data = [datum(1, group=group, weights=one, other_weights=two) for group, one, two in rows]
    value, gradients, _ = evaluated(LOSS + 3 * other, data, [[-1.0], [-2.0], [-4.0]])
    # by `weights` prompts 7 and 2: (1 + 4) / 2; by the others prompt 2 alone: (2 + 4) / 2
    assert value == pytest.approx(5 / 2 + 3 * 3)
    assert_rows_equal(gradients, [[-1 / 2], [-3 / 2], [-1 / 2 - 3 / 2]], 1e-12)


def test_candidates_of_several_widths_keep_the_weights_of_the_whole_call() -> None:
    loss = get_loss("topk_forward_kl", reduction="prompt-mean", tail="drop")
    data = [
        datum([[0, 1]], teacher_logprobs=[[-0.1, -3.0]], weights=[1], group=1),
        datum([[0, 1, 2]], teacher_logprobs=[[-1.0, -1.5, -2.0]], weights=[3], group=1),
    ]
    rows = [torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.0, -1.0, -2.0]])]
    bound = loss.prepare(data)
    parts = [bound.part([i]).terms({"logprobs": [rows[i]]})[0] for i in (0, 1)]
    torch.testing.assert_close(sum(parts), bound.terms({"logprobs": rows})[0])


def test_a_prompt_without_weight_is_not_counted_where_a_loss_sees_every_position() -> None:
    def weighed(logprobs: Tensor, weights: Tensor) -> Tensor:
        return -weights * logprobs

    data, rows = answers()
    loss = get_loss(weighed, reduction="prompt-mean")
    assert loss.count(data) == LOSS.count(data) == Count((2.0,))
    assert evaluated(loss, data, rows)[0] == pytest.approx(evaluated(LOSS, data, rows)[0])


@given(st.data())
@settings(max_examples=25)
def test_it_is_the_formula_in_numpy(drawn: st.DataObject) -> None:
    data = drawn.draw(datums(LOSS))
    rows = drawn.draw(outputs(LOSS, data))["logprobs"]
    own: dict[int, list[np.ndarray]] = {}
    for one, row in zip(data, rows, strict=True):
        weights = one.loss_fn_inputs["weights"].to_numpy().astype(np.float64).reshape(-1)
        terms = np.stack([-weights * row.numpy().reshape(-1), weights])
        own.setdefault(int(one.loss_fn_inputs["group"].to_numpy().reshape(-1)[0]), []).append(terms.sum(1))
    sums = [np.sum(parts, axis=0) for parts in own.values()]
    means = [total / weight for total, weight in sums if weight]
    value, _ = LOSS(data, rows)
    assert float(value) == pytest.approx(float(np.mean(means)), rel=1e-9)


def test_with_a_group_for_each_datum_it_is_the_mean_over_sequences() -> None:
    data, rows = answers()
    apart = [Datum(d.model_input, {**d.loss_fn_inputs, "group": i}) for i, d in enumerate(data)]
    one = evaluated(LOSS, apart, rows)
    other = evaluated(get_loss("cross_entropy", reduction="seq-mean-token-mean"), data, rows)
    assert one[0] == other[0]
    assert_rows_equal(one[1], other[1], 0)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_on_tensors_groups_are_one_number_a_row(packed: bool) -> None:
    data, rows = answers()
    assert_same(LOSS, data, {"logprobs": [torch.tensor(row, dtype=torch.float64) for row in rows]}, packed=packed)


def test_only_this_reduction_reads_the_key() -> None:
    data, _ = answers()
    bare = [datum(2, weights=[1, 1])]
    with pytest.raises(MissingInput, match="cross_entropy reads 'group', which datum 0 of 1 does not carry"):
        LOSS.check(bare)
    again = get_loss(LOSS, reduction="token-mean")
    assert again.check(bare) == Count((2.0,))
    assert [one.name for one in again.spec.inputs] == []
    assert again.couples == "token"
    with pytest.raises(LabelError, match=r"group of datum 0 is 0\.5: give an integer"):
        LOSS.check([datum(2, weights=[1, 1], group=0.5)])
    with pytest.raises(WeightsError, match="reduction 'prompt-mean' cannot divide by"):
        LOSS.check([datum(2, weights=[1, -1], group=1)])
    with pytest.raises(MissingInput, match="cross_entropy reads 'group', which was not given"):
        LOSS.count_tensors(mask=torch.ones(1, 2))
    with pytest.raises(TraceError, match="reduction 'prompt-mean' would be another loss there"):
        LOSS.trace()
    LOSS.check(data, strict=True)


def test_a_pair_beside_it_stays_a_pair() -> None:
    mixture = get_loss("dpo") + 0.1 * LOSS
    assert (mixture.couples, mixture.cut_by) == ("group", "pair")


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        get_loss("grpo", reduction="prompt-mean"),
        get_loss("topk_forward_kl", reduction="prompt-mean"),
        get_loss("dpo") + 0.1 * get_loss("cross_entropy", reduction="prompt-mean", weights="mine"),
    ],
    ids=lambda loss: loss.name,
)
def test_the_laws_hold(loss: Any) -> None:
    check_loss(loss, max_examples=4)
