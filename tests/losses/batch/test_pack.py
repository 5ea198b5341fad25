"""What a loss is handed: tokens of all datums in one row, masked positions left out, and how they lie in datums."""

from __future__ import annotations

import functools
import gc
import inspect
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from lossbook import Datum, ModelInput, TensorData, get_loss
from lossbook.datums.errors import AlignmentError, LengthMismatchError, NonFiniteLossInput, ShapeError
from lossbook.losses import PerDatum, Seqs

from ..cases import assert_rows_equal, datum, evaluated, loss_of

lengths = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def seen_by(function: Any, data: list[Datum], rows: list[Any], **registration: Any) -> dict[str, Any]:
    """What a loss function is called with, by name."""
    seen: dict[str, Any] = {}

    @functools.wraps(function)
    def recording(*arguments: Any) -> Any:
        seen.update(zip(inspect.signature(function).parameters, arguments, strict=True))
        return function(*arguments)

    loss = loss_of(recording, **registration)
    loss(data, [torch.tensor(row, dtype=torch.float64) for row in rows])
    return seen


# What a function is called with.


def test_masked_positions_and_wholly_masked_datums_never_reach_the_function() -> None:
    def spy(logprobs: Tensor, advantages: Tensor, label: PerDatum, seqs: Seqs) -> Tensor:
        return -logprobs

    data = [
        datum(3, weights=[0, 2, 1], advantages=[np.nan, 1, 2], label=5.0),
        datum(2, weights=[0, 0], advantages=[np.nan, np.inf], label=np.nan),
        datum(1, weights=[0.5], advantages=[3], label=7.0),
    ]
    seen = seen_by(spy, data, [[np.nan, -1, -2], [np.nan, -np.inf], [-3]])
    assert seen["logprobs"].tolist() == [-1, -2, -3]
    assert seen["advantages"].tolist() == [1, 2, 3]
    assert seen["label"].tolist() == [5, 7]
    assert seen["seqs"].lengths.tolist() == [2, 1]
    assert seen["logprobs"].dtype == seen["advantages"].dtype == seen["label"].dtype == torch.float64


def test_a_loss_that_wants_weights_sees_everything() -> None:
    def spy(logprobs: Tensor, weights: Tensor, advantages: Tensor, seqs: Seqs) -> Tensor:
        return torch.where(weights != 0, -weights * logprobs, torch.zeros_like(logprobs))

    data = [datum(3, weights=[0, 2, -1], advantages=[1, 2, 3]), datum(2, weights=[0, 0], advantages=[4, 5])]
    rows = [[-5.0, -1.0, -2.0], [-6.0, -7.0]]
    seen = seen_by(spy, data, rows)
    assert seen["logprobs"].tolist() == [-5, -1, -2, -6, -7]
    assert seen["weights"].tolist() == [0, 2, -1, 0, 0]
    assert seen["advantages"].tolist() == [1, 2, 3, 4, 5]
    assert seen["seqs"].lengths.tolist() == [3, 2]
    # And it weighs on its own: nothing multiplies what it returns.
    value, gradients, _ = evaluated(loss_of(spy), data, rows)
    assert value == 2 * 1 - 1 * 2
    assert_rows_equal(gradients, [[0, -2, 1], [0, 0]], 0)


def test_a_loss_that_wants_weights_may_be_handed_nan_where_they_are_zero() -> None:
    def own_mask(logprobs: Tensor, weights: Tensor, advantages: Tensor) -> Tensor:
        masked = weights == 0
        return -weights * torch.where(masked, 0, advantages) * torch.where(masked, 0, logprobs)

    data = [datum(2, weights=[0, 1], advantages=[np.nan, 3])]
    assert evaluated(loss_of(own_mask), data, [[-np.inf, -2.0]])[0] == 6
    with pytest.raises(NonFiniteLossInput, match="advantages of datum 0 is nan at position 1"):
        loss_of(own_mask).check([datum(2, weights=[1, 1], advantages=[0, np.nan])])


def weighs_itself(logprobs: Tensor, advantages: Tensor, weights: Tensor) -> Tensor:
    return -advantages * logprobs * weights


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_at_weight_0_never_reach_a_loss_that_reads_weights(odd: float) -> None:
    data = [datum(3, weights=[0, 1, 1], advantages=[odd, 1, 1])]
    value, gradients, _ = evaluated(loss_of(weighs_itself), data, [[odd, -2.0, -3.0]])
    assert value == 5.0
    assert_rows_equal(gradients, [[0, -1, -1]], 0)


def test_of_several_targets_the_one_of_weight_0_may_hold_nan_for_a_loss_that_reads_weights() -> None:
    data = [datum([[1, 2]], weights=[[0, 1]], advantages=[[np.nan, 2]])]
    value, gradients, _ = evaluated(loss_of(weighs_itself), data, [[[np.nan, -3.0]]])
    assert value == 6.0
    assert_rows_equal(gradients, [[[0, -2]]], 0)
    with pytest.raises(
        NonFiniteLossInput, match=r"advantages of datum 0 is nan at position 0, where the weight is not 0"
    ):
        loss_of(weighs_itself).check([datum([[1, 2]], weights=[[0, 1]], advantages=[[0, np.nan]])])


def test_an_embedding_that_is_nan_names_its_datum() -> None:
    data = [Datum([0], {})] * 4
    rows = [[1.0, 0.0], [0.0, 1.0], [np.nan, 1.0], [1.0, 1.0]]
    with pytest.raises(
        NonFiniteLossInput, match=r"^info_nce: the model's embeddings of datum 2 are nan. Has the model dive"
    ):
        evaluated(get_loss("info_nce"), data, rows)


def test_one_number_for_a_token_input_holds_for_the_whole_datum() -> None:
    data = [
        datum(3, sampling_logprobs=[-1.0] * 3, advantages=2.0),
        datum(1, sampling_logprobs=[-1.0], advantages=[3.0]),
    ]
    value, gradients, _ = evaluated(get_loss("importance_sampling"), data, [[-1.0] * 3, [-1.0]])
    assert value == -9
    assert_rows_equal(gradients, [[-2, -2, -2], [-3]], 0)


def test_numbers_a_datum_keep_their_fractions_behind_an_integer() -> None:
    def spy(logprobs: Tensor, label: PerDatum) -> Tensor:
        return -logprobs

    data = [datum(1, label=1), datum(1, label=0.5), datum(1, label=[0.25])]
    assert seen_by(spy, data, [[-1.0]] * 3)["label"].tolist() == [1.0, 0.5, 0.25]


def test_an_optional_input_that_no_datum_carries_arrives_as_none() -> None:
    def spy(logprobs: Tensor, bonus: Tensor | None = None, label: PerDatum | None = None) -> Tensor:
        return -logprobs

    seen = seen_by(spy, [datum(1)], [[-1.0]])
    assert seen["bonus"] is None
    assert seen["label"] is None
    seen = seen_by(spy, [datum(2, bonus=[1.0, 2.0], label=3.0)], [[-1.0, -1.0]])
    assert seen["bonus"].tolist() == [1, 2]
    assert seen["label"].tolist() == [3]


def test_integers_stay_integers() -> None:
    def spy(logprobs: Tensor, target_tokens: Tensor, group: PerDatum) -> Tensor:
        return -logprobs

    seen = seen_by(spy, [datum([7, 8], group=4), datum([9], group=5)], [[-1.0, -1.0], [-1.0]])
    assert seen["target_tokens"].dtype == seen["group"].dtype == torch.int64
    assert seen["target_tokens"].tolist() == [7, 8, 9]


# [N, K] targets.


def test_datums_of_different_k_and_of_one_target_share_a_call() -> None:
    data = [
        datum([[1, 2, 3]], weights=[[0.5, 0.25, 0.25]]),
        datum([[4, 5], [6, 7]], weights=[[1.0, 0.0], [0.0, 2.0]]),
        datum([8, 9], weights=[1.0, 0.0]),
    ]
    rows = [[[-1.0, -2.0, -4.0]], [[-1.0, -np.inf], [np.nan, -3.0]], [-5.0, np.nan]]
    for reduction, value in (
        ("sum", 2 + 1 + 6 + 5),
        ("token-mean", 14 / 5),
        ("seq-mean-token-mean", (2 + 7 / 3 + 5) / 3),
    ):
        total, gradients, metrics = evaluated(get_loss("cross_entropy", reduction=reduction), data, rows)
        assert total == pytest.approx(value), reduction
        assert [tuple(g.shape) for g in gradients] == [(1, 3), (2, 2), (2,)]
    assert metrics["nll"] == pytest.approx((1 + 2 + 4 + 1 + 3 + 5) / 6)  # over the targets that have a weight


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30], ids=str)
def test_a_target_of_weight_zero_may_hold_anything_beside_one_that_counts(garbage: float) -> None:
    def data(beside: float) -> list[Datum]:
        sampling = [[-1.0, beside], [beside, -2.0]]
        return [datum([[1, 2]] * 2, weights=[[1, 0], [0, 2]], sampling_logprobs=sampling, advantages=sampling)]

    loss = get_loss("ppo", reduction="token-mean")
    value, gradients, metrics = evaluated(loss, data(garbage), [[[-1.5, garbage], [garbage, -2.25]]])
    expected, slopes, _ = evaluated(loss, data(0.0), [[[-1.5, -1.0], [-1.0, -2.25]]])
    assert value == expected
    assert_rows_equal(gradients, slopes, 0)
    assert metrics["nll"] == (1.5 + 2.25) / 2


@pytest.mark.parametrize("positions", [1, 2, 3], ids=lambda n: f"{n} positions of 2 targets")
def test_beside_several_targets_a_number_a_position_holds_for_all_of_them(positions: int) -> None:
    # With 2 positions of 2 targets, a row of 2 numbers would broadcast the wrong way without a word.
    wide = datum(
        [[1, 2]] * positions,
        weights=[[1.0, 0.5]] * positions,
        sampling_logprobs=[[-1.0, -2.0]] * positions,
        advantages=[float(t + 1) for t in range(positions)],
    )
    plain = datum(2, weights=[1, 1], sampling_logprobs=[-1.0, -3.0], advantages=[2.0, -1.0])
    both = [[float(t + 1)] * 2 for t in range(positions)]
    spelt_out = Datum(wide.model_input, {**wide.loss_fn_inputs, "advantages": both})
    rows = [[[-1.5, -2.5]] * positions, [-1.0, -3.5]]
    for data in ([wide, plain], [wide, spelt_out, plain]):
        outputs = rows if len(data) == 2 else [rows[0], *rows]
        value, gradients, _ = evaluated(get_loss("importance_sampling"), data, outputs)
        expected = [spelt_out if one is wide else one for one in data]
        again, slopes, _ = evaluated(get_loss("importance_sampling"), expected, outputs)
        assert value == again
        assert_rows_equal(gradients, slopes, 0)


def test_sparse_targets_and_weights_equal_their_dense_form() -> None:
    tokens, weights = [[3, 0, 5], [0, 4, 0]], [[0.5, 0.0, 0.25], [0.0, 2.0, 0.0]]
    layout = {"shape": [2, 3], "sparse_crow_indices": [0, 2, 3], "sparse_col_indices": [0, 2, 1]}
    sparse = datum(
        2,
        target_tokens=TensorData([3, 5, 4], "int64", **layout),
        weights=TensorData([0.5, 0.25, 2.0], "float32", **layout),
    )
    rows = [[[-1.0, -2.0, -4.0], [-1.0, -3.0, -5.0]]]
    total, gradients, _ = evaluated(get_loss("cross_entropy"), [sparse], rows)
    expected, slopes, _ = evaluated(get_loss("cross_entropy"), [datum(tokens, weights=weights)], rows)
    assert total == expected == 7.5
    assert_rows_equal(gradients, slopes, 0)


def test_weights_of_several_targets_may_be_flat_in_row_major_order() -> None:
    flat = datum([[1, 2], [3, 4]], weights=[1, 2, 3, 4])
    assert evaluated(get_loss("cross_entropy"), [flat], [[[-1.0, -10.0], [-100.0, -1000.0]]])[0] == 4321


def test_too_few_weights_for_several_targets_say_how_many_are_needed() -> None:
    with pytest.raises(LengthMismatchError) as caught:
        get_loss("cross_entropy").check([datum(2), datum([[1, 2], [3, 4], [5, 6]], weights=[1, 1, 1])])
    assert str(caught.value) == (
        "datum 1 of 2: weights has 3 values but target_tokens is [3, 2]: it needs 6 (N*K) values in row-major order"
    )


def test_transposed_weights_are_refused() -> None:
    with pytest.raises(ShapeError) as caught:
        get_loss("cross_entropy").check([datum([[1, 2], [3, 4], [5, 6]], weights=[[1, 1, 1], [0, 0, 0]])])
    assert str(caught.value) == ("datum 0 of 1: weights is [2, 3] but target_tokens is [3, 2]. Is it transposed?")


# Lengths and shapes that disagree.


@pytest.mark.parametrize("key", ["weights", "advantages", "sampling_logprobs"])
@pytest.mark.parametrize("length", [2, 4], ids=["one short", "one long"])
def test_a_length_off_by_one_hints_at_the_shift(key: str, length: int) -> None:
    inputs = {"sampling_logprobs": [-1.0] * 3, "advantages": [1.0] * 3, "weights": [1.0] * 3}
    data = [datum(3, **inputs), datum(3, **{**inputs, key: [0.0] * length})]
    with pytest.raises(LengthMismatchError) as caught:
        get_loss("ppo").check(data)
    assert str(caught.value) == (
        f"datum 1 of 2: {key} has {length} entries, but there are 3 target positions. Off by one: was it made for the "
        "unshifted tokens? datum_from_tokens_weights shifts tokens and weights together"
    )


def test_a_length_that_is_far_off_gets_no_hint() -> None:
    with pytest.raises(LengthMismatchError) as caught:
        get_loss("cross_entropy").check([datum(3, weights=[1.0] * 9)])
    assert str(caught.value) == "datum 0 of 1: weights has 9 entries, but there are 3 target positions"


@pytest.mark.parametrize(
    ("targets", "row", "error", "message"),
    [
        pytest.param(
            3, [-1.0] * 2, LengthMismatchError, "datum 0 of 1 has 3 positions but 2 logprobs", id="too few positions"
        ),
        pytest.param(
            3,
            -1.0,
            LengthMismatchError,
            "datum 0 of 1 has 3 positions but a single number of logprobs",
            id="one number",
        ),
        pytest.param(
            3,
            [[-1.0]] * 3,
            ShapeError,
            "datum 0 of 1: logprobs is [3, 1] but its targets ask for [3]",
            id="a column instead of a row, which would broadcast",
        ),
        pytest.param(
            [[1, 2], [3, 4]],
            [[-1.0] * 5] * 2,
            ShapeError,
            "datum 0 of 1: logprobs is [2, 5] but its targets ask for [2, 2]",
            id="more logprobs than targets",
        ),
        pytest.param(
            [[1, 2], [3, 4]],
            [-1.0] * 2,
            ShapeError,
            "datum 0 of 1: logprobs is [2] but its targets ask for [2, 2]",
            id="one logprob for two targets",
        ),
    ],
)
def test_logprobs_of_another_shape_than_their_targets_are_refused(
    targets: Any, row: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        get_loss("cross_entropy")([datum(targets)], [torch.tensor(row)])
    assert str(caught.value) == message


def test_two_numbers_for_an_input_of_one_a_datum_are_refused() -> None:
    def labelled(logprobs: Tensor, label: PerDatum) -> Tensor:
        return -logprobs

    with pytest.raises(ShapeError, match=r"^labelled reads one 'label' per datum, but datum 1 carries 2 numbers$"):
        loss_of(labelled).check([datum(2, label=1.0), datum(2, label=[1.0, 2.0])])
    with pytest.raises(NonFiniteLossInput, match=r"^labelled: label of datum 1 is nan$"):
        loss_of(labelled).check([datum(2, label=1.0), datum(2, label=np.nan)])


# Edges and size.


def test_a_datum_without_positions_changes_nothing() -> None:
    loss = get_loss("cross_entropy", reduction="seq-mean-token-mean")
    data, rows = [datum(2, weights=[1, 1])], [[-1.0, -3.0]]
    empty = datum(0, weights=[])
    assert evaluated(loss, [empty, *data], [[], *rows])[0] == evaluated(loss, data, rows)[0] == 2


@pytest.mark.parametrize("reduction", ["sum", "token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
def test_the_total_of_a_wholly_masked_part_is_zero_and_has_a_graph(reduction: str) -> None:
    loss = get_loss("cross_entropy", reduction=reduction)
    for data, rows in (([datum(2, weights=[0, 0])], [[np.nan, 0.0]]), ([datum(0, weights=[])], [[]])):
        outputs = [torch.tensor(row, requires_grad=True) for row in rows]
        total, metrics = loss.terms(data, outputs)
        (gradient,) = torch.autograd.grad(total, outputs)
        assert float(total.detach()) == 0
        assert not gradient.any()
        assert float(metrics["nll"].count) == 0
        assert not float(loss.count(data)) or reduction == "sum"


def calls_while(action: Any) -> int:
    """How many Python functions run during `action()`; no collection of garbage, which runs hypothesis's callback."""
    count = 0

    def tally(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    gc.disable()
    sys.setprofile(tally)
    try:
        action()
    finally:
        sys.setprofile(before)
        gc.enable()
    return count


def test_packing_runs_no_python_per_token() -> None:
    def data(length: int) -> list[Datum]:
        row = np.full(length, -1.0, dtype=np.float32)
        return [datum(length, weights=-row, sampling_logprobs=row, advantages=row) for _ in range(20)]

    loss = get_loss("ppo", reduction="seq-mean-token-mean")
    short, long = data(4), data(400)
    loss.pack(short)  # what is cached at first use
    assert calls_while(lambda: loss.pack(long)) == calls_while(lambda: loss.pack(short))


def test_ten_thousand_datums_are_one_call() -> None:
    one = Datum(ModelInput.from_ints(range(32)), {"target_tokens": range(32), "weights": [0.0] * 16 + [1.0] * 16})
    data = [one] * 10_000
    loss = get_loss("cross_entropy", reduction="token-mean")
    value, metrics = loss(data, list(torch.full((10_000, 32), -2.0).unbind()))
    assert float(value) == metrics["nll"] == 2
    assert loss.check(data).values == (160_000.0,)


def test_an_input_may_come_under_the_name_that_others_give_it() -> None:
    loss = get_loss("importance_sampling")
    ours, theirs = (
        datum(2, weights=[1, 1], advantages=[1.0, 2.0], **{key: [-1.0, -3.0]})
        for key in ("sampling_logprobs", "logprobs")
    )
    # ratios e^0 and e^1
    for data in ([ours], [theirs], [ours, theirs]):
        value, _, _ = evaluated(loss, data, [[-1.0, -2.0]] * len(data))
        assert value == pytest.approx(-len(data) * (1 + 2 * math.e))


def test_the_ids_of_prompts_are_packed_with_the_weights_of_their_groups() -> None:
    data = [datum(1, weights=[w], group=g) for w, g in ((1.0, 7), (2.0, 3), (4.0, 7))]
    prompts = get_loss("cross_entropy", reduction="prompt-mean").pack(data).prompts
    assert prompts is not None
    assert (prompts.weights.tolist(), prompts.is_first.tolist()) == ([5, 2, 5], [True, True, False])


def test_the_first_datum_without_a_position_is_named_where_datums_are_known_by_their_places() -> None:
    data = [datum(1, weights=[w], document_id=0) for w in (1.0, 0.0, 1.0, 0.0)]
    with pytest.raises(AlignmentError, match="maxsim knows datums by their places, and datum 1 of 4 has no position"):
        get_loss("maxsim").check(data)
