"""Packed data: what is added up and divided by, any part of a call, and several targets beside one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossbook import Datum, get_loss
from lossbook.datums.errors import EmptyLossError, LengthMismatchError, WeightsError
from lossbook.losses import PerDatum, Seqs
from lossbook.losses.batch.outputs import Outputs
from lossbook.losses.spec.groups import Grouping

from ..cases import assert_rows_equal, datum, evaluated, loss_of
from .test_pack import seen_by

NAN = math.nan


# Several targets, beside one, and numbers that go with them.


@pytest.mark.parametrize(
    ("wide", "row", "value"),
    [
        # advantages x exp(logprobs - sampling_logprobs), the latter 0 apart, by hand
        pytest.param([[1], [2]], [[-1.0], [-1.0]], 3 * 1 + 4 * 1, id="K = 1"),
        pytest.param([[1, 2], [3, 4]], [[-1.0, -1.0], [-1.0, -1.0]], 3 * 2 + 4 * 2, id="K = 2"),
        pytest.param([[1, 2, 3], [3, 4, 5]], [[-1.0] * 3] * 2, 3 * 3 + 4 * 3, id="K = 3"),
    ],
)
@pytest.mark.parametrize("is_first", [False, True])
def test_a_datum_of_one_target_keeps_its_numbers_beside_several(
    wide: Any, row: Any, value: float, is_first: bool
) -> None:
    several = datum(
        wide,
        weights=np.ones((2, len(wide[0]))),
        sampling_logprobs=np.full((2, len(wide[0])), -1.0),
        advantages=[3.0, 4.0],
    )
    one = datum(2, weights=[1, 1], sampling_logprobs=[-2.0, -2.0], advantages=[5.0, 7.0])
    nothing = datum(0, weights=[], sampling_logprobs=[], advantages=[])
    data, rows = [one, nothing, several], [[-2.0, -2.0], [], row]
    if not is_first:
        data, rows = data[::-1], rows[::-1]
    total, gradients, _ = evaluated(get_loss("importance_sampling"), data, rows)
    assert total == -(5 + 7 + value)
    assert_rows_equal([gradients[0 if is_first else 2]], [[-5, -7]], 0)


def test_numbers_per_position_are_counted_in_positions_beside_several_targets() -> None:
    own = {"weights": [[1, 1]] * 3, "sampling_logprobs": [[-1.0, -1.0]] * 3}
    with pytest.raises(LengthMismatchError) as caught:
        get_loss("ppo").check([datum([[1, 2]] * 3, **own, advantages=[1.0, 2.0])])
    assert str(caught.value).startswith("datum 0 of 1: advantages has 2 entries, but there are 3 target positions")


def test_columns_of_ones_own_need_not_be_as_many_as_the_targets() -> None:
    def spy(logprobs: Tensor, features: Tensor) -> Tensor:
        return -logprobs * features.sum(1, keepdim=True)

    data = [datum([[1, 2], [3, 4]], weights=[[1, 0], [0, 1]], features=[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])]
    seen = seen_by(spy, data, [[[-1.0, NAN], [NAN, -2.0]]])
    assert seen["features"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert seen["logprobs"].tolist() == [[-1, 0], [0, -2]]


def test_slots_that_do_not_count_hold_zero() -> None:
    def spy(logprobs: Tensor, advantages: Tensor) -> Tensor:
        return -logprobs * advantages

    data = [
        datum([[1, 2]], weights=[[1, 0]], advantages=[[5.0, NAN]]),
        datum([[1, 2, 3]], weights=[[0, 1, 0]], advantages=[[7.0, 8.0, 9.0]]),
    ]
    seen = seen_by(spy, data, [[[-1.0, -2.0]], [[-3.0, -4.0, -5.0]]])
    assert seen["advantages"].tolist() == [[5, 0, 0], [0, 8, 0]]
    assert seen["logprobs"].tolist() == [[-1, 0, 0], [0, -4, 0]]


def test_a_loss_that_reads_weights_sees_zero_for_nan_and_in_slots_that_fill_a_row_up() -> None:
    def spy(logprobs: Tensor, weights: Tensor, advantages: Tensor, bonus: Tensor) -> Tensor:
        return -weights * logprobs * advantages

    data = [
        datum([[1, 2]], weights=[[1, 0]], advantages=[[5.0, NAN]], bonus=2.5),
        datum([[1, 2, 3]], weights=[[0, 1, 0]], advantages=[[7.0, 8.0, math.inf]], bonus=3.5),
    ]
    seen = seen_by(spy, data, [[[-1.0, NAN]], [[-math.inf, -4.0, -5.0]]])
    assert seen["advantages"].tolist() == [[5, 0, 0], [7, 8, 0]]
    assert seen["logprobs"].tolist() == [[-1, 0, 0], [0, -4, -5]]
    assert seen["bonus"].tolist() == [2.5, 3.5]  # one per position: how targets differ is the loss's own matter


def test_of_no_datums_a_loss_over_candidates_sees_one_column() -> None:
    shapes: list[Any] = []

    def spy(logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        shapes.extend([tuple(logprobs.shape), tuple(teacher_logprobs.shape)])
        return -logprobs.sum(1)

    loss_of(spy, candidates="teacher_logprobs").terms([], [])
    assert shapes == [(0, 1), (0, 1)]


# What is added up, and what it is divided by.


def test_the_sums_of_a_loss_per_token_do_not_weigh() -> None:
    sums: list[Any] = []

    def per_token(logprobs: Tensor, seqs: Seqs) -> Tensor:
        sums.append(seqs.sum(logprobs).tolist())
        return -logprobs

    data = [datum(2, weights=[2.0, 0.5]), datum(1, weights=[3.0])]
    evaluated(loss_of(per_token), data, [[-1.0, -2.0], [-4.0]])
    assert sums == [[-3, -4]]
    assert evaluated(loss_of(per_datum, per="datum", reduction="sum"), data, [[-1.0, -2.0], [-4.0]])[0] == 3 + 12


def test_seqs_say_how_many_values_are_wanted_where_the_data_do() -> None:
    def of_firsts(logprobs: Tensor, is_first: PerDatum, seqs: Seqs) -> Tensor:
        return -seqs.sum(logprobs)[is_first.bool()]

    def wanted(datums: int, config: Any, inputs: Any) -> Grouping:
        return Grouping(values=None if inputs is None else int(inputs["is_first"].sum()))

    data = [datum(1, weights=[1.0], is_first=float(i != 1)) for i in range(3)]
    rows = [[-1.0], [-2.0], [-4.0]]
    assert seen_by(of_firsts, data, rows, per="datum", reduction="sum", groups=wanted)["seqs"].values == 2
    assert seen_by(per_datum, data, rows, per="datum", reduction="sum")["seqs"].values is None


def per_datum(logprobs: Tensor, seqs: Seqs) -> Tensor:
    return -seqs.sum(logprobs)


def own_weights(logprobs: Tensor, weights: Tensor) -> Tensor:
    return -weights * logprobs


@pytest.mark.parametrize(
    ("reduction", "value"),
    [
        ("sum", 2 * 1 + 1 * 4 + 3 * 8),
        ("token-mean", 30 / 6),
        ("seq-mean-token-mean", ((2 * 1 + 1 * 4) / 3 + 8) / 2),
        ("seq-mean-token-sum", 30 / 2),
    ],
)
def test_a_wholly_masked_datum_adds_nothing_to_a_loss_that_reads_weights(reduction: str, value: float) -> None:
    data = [datum(2, weights=[2, 1]), datum(2, weights=[0, 0]), datum(1, weights=[3])]
    rows = [[-1.0, -4.0], [-9.0, NAN], [-8.0]]
    assert evaluated(loss_of(own_weights, config={"reduction": reduction}), data, rows)[0] == pytest.approx(value)


@pytest.mark.parametrize(("length", "value"), [(1, (1 + 4 + 8) / 2), (4, (1 + 4 + 8) / 8)])
def test_a_constant_length_divides_once_per_datum(length: int, value: float) -> None:
    loss = get_loss("cross_entropy", reduction="seq-mean-token-sum-norm", norm_length=length)
    data = [datum(2, weights=[1, 1]), datum(1, weights=[1]), datum(1, weights=[0])]
    assert evaluated(loss, data, [[-1.0, -4.0], [-8.0], [-1.0]])[0] == pytest.approx(value)


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ([[[0.5, 0.0]], [[1.0, -1.0]], [[-1.0, 1.0]]], 1),
        ([[[0.0, 0.0]], [[0.5, 0.0]], [[1.0, -0.25]]], 2),
        ([[0.25, 0.5], [0.0, 1.0], [0.0, -1.0], [-1.0]], 2),
    ],
)
def test_the_first_datum_with_a_negative_weight_is_named(weights: list, named: int) -> None:
    data = [datum([[1] * len(w[0]) for _ in w] if isinstance(w[0], list) else len(w), weights=w) for w in weights]
    for loss in (
        get_loss("cross_entropy", reduction="token-mean"),
        loss_of(own_weights, config={"reduction": "token-mean"}),
    ):
        with pytest.raises(WeightsError, match=f": datum {named} has negative weights, which reduction 'token-mean'"):
            loss.check(data)


# Parts of a call.


@pytest.mark.parametrize("name", ["cross_entropy", "reinforce", "topk_forward_kl"])
def test_a_part_is_as_wide_as_its_own_datums(name: str) -> None:
    def wide(columns: int) -> Datum:
        own = {key: np.full((2, columns), -1.5) for key in ("advantages", "teacher_logprobs")}
        weights = [1.0, 0.5] if name == "topk_forward_kl" else np.full((2, columns), 0.5)
        return Datum([1, 2], {"target_tokens": np.ones((2, columns), dtype=np.int64), "weights": weights, **own})

    data, rows = [wide(3), wide(2)], [torch.full((2, 2), -2.0)]
    loss = get_loss(name)
    assert float(loss.prepare(data).terms(rows, [1])[0]) == float(loss.terms(data[1:], rows)[0])


def labelled(logprobs: Tensor, label: PerDatum, seqs: Seqs) -> Tensor:
    return label * seqs.sum(logprobs)


#: Losses whose parts are taken in another way: per token, weighed, per datum, and over candidates.
LOSSES = {
    "ppo": lambda: get_loss("ppo", reduction="seq-mean-token-mean"),
    "labelled": lambda: loss_of(labelled, per="datum"),
    "own_weights": lambda: loss_of(own_weights),
    "cross_entropy": lambda: get_loss("cross_entropy"),
    "topk_forward_kl": lambda: get_loss("topk_forward_kl"),
}


@pytest.mark.parametrize("name", LOSSES)
@given(data=st.data())
@settings(max_examples=25)
def test_a_part_of_a_call_is_what_its_datums_give_alone(name: str, data: st.DataObject) -> None:
    loss = LOSSES[name]()
    has_columns = name in ("cross_entropy", "topk_forward_kl")
    batch: list[Datum] = []
    rows: list[list[Any]] = []
    for i in range(data.draw(st.integers(1, 5), label="datums")):
        positions, columns = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 3)) if has_columns else None
        shape = (positions,) if columns is None else (positions, columns)
        weights = data.draw(
            st.lists(st.sampled_from([0.0, 1.0, 0.5]), min_size=positions, max_size=positions), label="weights"
        )
        numbers = -(np.arange(np.prod(shape)).reshape(shape) + i + 1.0) / 8
        own = {"sampling_logprobs": numbers - 0.125, "advantages": numbers + 2, "teacher_logprobs": numbers - 1}
        batch.append(
            Datum(
                list(range(positions)),
                {
                    "target_tokens": np.zeros(shape, dtype=np.int64),
                    "weights": np.array(weights, dtype=np.float32)
                    if columns is None or name == "topk_forward_kl"
                    else np.repeat(np.array(weights, dtype=np.float32)[:, None], columns, 1),
                    "label": float(i + 1),
                    **own,
                },
            )
        )
        rows.append(numbers.tolist() if positions else np.zeros(shape).tolist())
    order = data.draw(st.lists(st.sampled_from(range(len(batch))), unique=True, min_size=1), label="order")
    own_rows = [
        torch.tensor(rows[i], dtype=torch.float64).reshape(batch[i].loss_fn_inputs["target_tokens"].shape)
        for i in order
    ]
    try:
        bound = loss.prepare(batch)
    except EmptyLossError:
        assume(False)
    alone, own_metrics = loss.terms([batch[i] for i in order], own_rows)
    part = bound.part(order)
    assert part.count == loss.count([batch[i] for i in order])
    placed = part.placed(part.tensors(None))  # as on another device
    for total, metrics in (bound.terms(own_rows, order), part.terms(own_rows), placed.terms(own_rows)):
        assert total.item() == pytest.approx(alone.item(), abs=1e-12)
        assert metrics.keys() == own_metrics.keys()
        for key, stat in metrics.items():
            assert (float(stat.total), float(stat.count)) == pytest.approx(
                (float(own_metrics[key].total), float(own_metrics[key].count))
            ), key


@pytest.mark.parametrize("is_placed", [False, True])
def test_each_part_of_a_mixture_takes_its_own_rows_of_what_was_computed(is_placed: bool) -> None:
    def everywhere(logprobs: Tensor, weights: Tensor) -> Tensor:
        return -logprobs

    data = [
        datum(3, weights=[0, 2, 1], label=3.0),
        datum(1, weights=[0], label=5.0),
        datum(2, weights=[0.5, 0], label=7.0),
    ]
    rows = torch.tensor([-1.0, -2.0, -4.0, -8.0, -16.0, -32.0])
    # Weighed: 2 x 2 + 4 + 16/2; labelled: 3 x (-4 - 4) + 7 x (-8); everywhere: 1 + 2 + 4 + 8 + 16 + 32.
    for losses, computed, right in (
        ([get_loss("cross_entropy"), loss_of(labelled, per="datum", reduction="sum")], [1, 2, 4], [16, -80]),
        ([get_loss("cross_entropy"), loss_of(labelled, per="datum", reduction="sum")], [0, 1, 2, 4, 5], [16, -80]),
        ([get_loss("cross_entropy"), loss_of(everywhere)], range(6), [16, 63]),
    ):
        bound = (losses[0] + losses[1]).prepare(data)
        active = torch.zeros(6, dtype=torch.bool)
        active[list(computed)] = True
        if is_placed:
            bound = bound.placed(bound.tensors(active))
        totals, _ = bound.terms(Outputs(logprobs=rows[active], active=active))
        assert totals.tolist() == right


def test_groups_go_with_the_rest_to_another_place() -> None:
    data = [datum(1, weights=[1.0], label=float(i), group=i // 2) for i in range(4)]
    packed = get_loss("listnet").pack(data)
    placed = packed.placed(packed.tensors(None))
    assert packed.groups is not None
    assert placed.groups is not None
    assert placed.groups.cells.tolist() == packed.groups.cells.tolist() == [0, 1, 2, 3]
