"""What a loss's inputs may be: shapes that fit are read as they lie, and the first datum that is wrong is named."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lossbook import Datum, get_loss
from lossbook.datums.errors import (
    AlignmentError,
    InvalidLogprobError,
    LabelError,
    LengthMismatchError,
    LossbookError,
    LossContractError,
    NonFiniteLossInput,
    ShapeError,
)
from lossbook.datums.inputs import MAX_LOGPROB
from lossbook.losses import FlagPerDatum, PerDatum, Seqs
from lossbook.losses.spec.inputs import IdPerDatum, VectorPerDatum

from ..cases import assert_rows_equal, datum, evaluated, loss_of

NAN = math.nan


@pytest.mark.parametrize(
    ("targets", "weights", "row", "value"),
    [
        pytest.param(3, [[1, 2, 4]], [-1.0, -10.0, -100.0], 421, id="[1, 3] for [3]"),
        pytest.param(3, [[1], [2], [4]], [-1.0, -10.0, -100.0], 421, id="[3, 1] for [3]"),
        pytest.param([[1], [2], [3]], [[1, 2, 4]], [[-1.0], [-10.0], [-100.0]], 421, id="[1, 3] for [3, 1]"),
        pytest.param([[1, 2], [3, 4]], [[1, 2], [3, 4]], [[-1.0, -10.0], [-100.0, -1000.0]], 4321, id="[2, 2]"),
        pytest.param([[1, 2], [3, 4]], [[[1, 2], [3, 4]]], [[-1.0, -10.0], [-100.0, -1000.0]], 4321, id="[1, 2, 2]"),
    ],
)
def test_weights_in_any_shape_that_keeps_the_order_of_the_targets_are_taken(
    targets: Any, weights: Any, row: Any, value: float
) -> None:
    beside = datum(2, weights=[[1, 0]])  # one whose weights do not lie as its targets do, so that all are looked at
    assert evaluated(get_loss("cross_entropy"), [datum(targets, weights=weights), beside], [row, [-5.0, NAN]])[0] == (
        value + 5
    )


@pytest.mark.parametrize(
    ("targets", "weights"),
    [([[1, 2, 3]] * 2, [[1, 2]] * 3), ([[1, 2]] * 4, [[1] * 4] * 2), ([[1, 2]] * 2, [[1, 2, 3, 4]])],
)
def test_weights_in_another_order_than_the_targets_are_refused(targets: Any, weights: Any) -> None:
    shape, wanted = ([len(rows), len(rows[0])] for rows in (weights, targets))
    with pytest.raises(ShapeError) as caught:
        get_loss("cross_entropy").check([datum(2, weights=[1, 1]), datum(targets, weights=weights)])
    assert str(caught.value) == (f"datum 1 of 2: weights is {shape} but target_tokens is {wanted}. Is it transposed?")


def candidates(positions: int, columns: int, **inputs: Any) -> Datum:
    return datum([list(range(columns))] * positions, teacher_logprobs=[[-1.0] * columns] * positions, **inputs)


def test_a_datum_without_positions_goes_beside_candidates() -> None:
    nothing = Datum(
        [], {"target_tokens": np.zeros((0, 2), dtype=int), "weights": [], "teacher_logprobs": np.zeros((0, 2))}
    )
    full, loss = candidates(2, 2, weights=[1.0, 0.5]), get_loss("topk_forward_kl")
    row = [[-1.0, -2.0], [-3.0, -1.0]]
    value = evaluated(loss, [full], [row])[0]
    assert evaluated(loss, [nothing, full], [np.zeros((0, 2)), row])[0] == value
    assert evaluated(get_loss("sdft"), [candidates(2, 1, weights=[1, 1])], [[[-1.0], [-3.0]]])[0] == 4


@pytest.mark.parametrize("weights", [[[1.0, 1.0]] * 3, [1.0] * 6])
def test_weights_of_candidates_are_refused_with_what_is_taken(weights: Any) -> None:
    data = [candidates(3, 2, weights=[1.0] * 3), candidates(3, 2, weights=weights)]
    with pytest.raises(LengthMismatchError) as caught:
        get_loss("topk_forward_kl").check(data)
    shape = [3, 2] if isinstance(weights[0], list) else [6]
    assert str(caught.value) == (
        f"datum 1 of 2: weights is {shape}, one for each of 2 candidates, but topk_forward_kl takes one per position, 3: "
        "teacher_logprobs says how the candidates compare"
    )


def spread(logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs) -> Tensor:
    return logprobs * 2 - ref_logprobs


def advantaged(logprobs: Tensor, advantages: Tensor, seqs: Seqs) -> Tensor:
    return logprobs * advantages


def test_a_loss_that_couples_tokens_takes_several_targets_unless_it_reads_advantages() -> None:
    own = {"weights": [[1, 1]], "ref_logprobs": [[-1.0, -3.0]], "advantages": [[1.0, 1.0]]}
    data = [datum([[1, 2]], **own)]
    assert evaluated(loss_of(spread, per="token", couples="datum"), data, [[[-5.0, -7.0]]])[0] == -24 + 4
    with pytest.raises(ShapeError, match=r"^advantaged couples the tokens of a datum, so it reads one token per pos"):
        loss_of(advantaged, per="token", couples="datum").check(data)
    assert evaluated(loss_of(advantaged, per="token"), data, [[[-5.0, -7.0]]])[0] == -12


@pytest.mark.parametrize(
    ("name", "what"),
    [("full_forward_kl", "whole distributions"), ("eaft", "the likeliest tokens")],
)
def test_a_loss_over_the_models_own_tokens_says_why_it_reads_one_target(name: str, what: str) -> None:
    with pytest.raises(
        ShapeError, match=f"^{name} reads {what}, so it reads one token per position, but target_tokens"
    ):
        get_loss(name, reduction="sum").check([datum([[1, 2]], weights=[[1, 1]])])


def taught(logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    return logprobs - teacher_logprobs.reshape(len(logprobs), -1).sum(1)


@pytest.mark.parametrize(
    ("loss", "key", "is_taken"),
    [
        pytest.param(lambda: loss_of(taught, per="token"), "teacher_logprobs", True, id="own, of a teacher"),
        pytest.param(lambda: loss_of(advantaged, per="token"), "advantages", False, id="own, advantages"),
        pytest.param(lambda: get_loss("importance_sampling"), "advantages", False, id="lossbook's, advantages"),
        pytest.param(lambda: get_loss("sampled_reverse_kl"), "teacher_logprobs", False, id="lossbook's, of a teacher"),
    ],
)
def test_only_a_loss_of_ones_own_may_read_a_teachers_columns_beside_one_target(
    loss: Any, key: str, is_taken: bool
) -> None:
    flat = {name: [-1.0, -2.0] for name in ("advantages", "teacher_logprobs", "sampling_logprobs")}
    data = [datum(2, weights=[1, 1], **{**flat, key: [[-1.0], [-2.0]]})]
    if is_taken:
        assert evaluated(loss(), data, [[-10.0, -20.0]])[0] == -30 + 3
        return
    with pytest.raises(ShapeError, match=rf": {key} of datum 0 of 1 is \[2, 1\], but its target_tokens are \[2\]"):
        loss().check(data)


def flagged(logprobs: Tensor, label: FlagPerDatum) -> Tensor:
    return -logprobs


def identified(logprobs: Tensor, group: IdPerDatum) -> Tensor:
    return -logprobs


def numbered(logprobs: Tensor, bonus: PerDatum) -> Tensor:
    return -logprobs


@pytest.mark.parametrize(
    ("function", "key", "numbers", "error", "message"),
    [
        (flagged, "label", [0, 1, 2, 3], LabelError, "flagged: label of datum 2 is 2: it must be 0 or 1."),
        (flagged, "label", [0, 2, 0, 2], LabelError, "flagged: label of datum 1 is 2: it must be 0 or 1."),
        (
            flagged,
            "label",
            [0.0, -1.0],
            LabelError,
            "flagged: label of datum 1 is -1: it must be 0 or 1. Did you mean 0?",
        ),
        (flagged, "label", [[0.0], [0.5]], LabelError, "flagged: label of datum 1 is 0.5: it must be 0 or 1."),
        (identified, "group", [3, 4.5], LabelError, "identified: group of datum 1 is 4.5: give an integer"),
        (identified, "group", [3, 2.0**25], LabelError, "identified: group of datum 1 is 3.35544e+07: give an integer"),
        (numbered, "bonus", [-1.5, [NAN], NAN], NonFiniteLossInput, "numbered: bonus of datum 1 is nan"),
        (numbered, "bonus", [0.5, [-math.inf]], NonFiniteLossInput, "numbered: bonus of datum 1 is -inf"),
        (
            numbered,
            "bonus",
            [0.5, [1.0, 2.0, 3.0]],
            ShapeError,
            "numbered reads one 'bonus' per datum, but datum 1 carries 3 numbers",
        ),
    ],
)
def test_one_number_per_datum_is_named_where_it_is_wrong(
    function: Any, key: str, numbers: list, error: type[LossbookError], message: str
) -> None:
    loss = loss_of(function)
    with pytest.raises(error) as caught:
        loss.check([datum(1, **{key: number}) for number in numbers])
    assert str(caught.value) == message
    loss.check([datum(1, **{key: number}) for number in (0, [1], 1.0, 0.0)])


def guided(embeddings: Tensor, guide_embedding: VectorPerDatum) -> Tensor:
    return embeddings.sum(1) * guide_embedding.sum(1)


@pytest.mark.parametrize(
    ("vectors", "error", "message"),
    [
        (
            [[1.0, 2.0], [1.0]],
            ShapeError,
            "guided: guide_embedding of datum 1 has 1 numbers, but that of the first datum has 2",
        ),
        ([[1.0], [[2.0]]], ShapeError, "guided: guide_embedding of datum 1 is [1, 1]: give one vector, [D]"),
        ([2.0, 2.0], ShapeError, "guided: guide_embedding of datum 0 is []: give one vector, [D]"),
        ([[], []], ShapeError, "guided: guide_embedding of datum 0 is [0]: give one vector, [D]"),
        ([[1.0, 2.0], [1.0, NAN]], NonFiniteLossInput, "guided: guide_embedding of datum 1 is nan at index 1"),
        ([[math.inf, 2.0], [1.0, 0.0]], NonFiniteLossInput, "guided: guide_embedding of datum 0 is inf at index 0"),
        ([[1.0, NAN, math.inf]], NonFiniteLossInput, "guided: guide_embedding of datum 0 is nan at index 1"),
    ],
)
def test_a_vector_per_datum_is_named_where_it_is_wrong(vectors: list, error: type[LossbookError], message: str) -> None:
    loss = loss_of(guided, per="datum")
    with pytest.raises(error) as caught:
        loss.check([datum(1, guide_embedding=vector) for vector in vectors])
    assert str(caught.value) == message


def test_a_vectors_key_says_that_it_is_one() -> None:
    def seen(embeddings: Tensor, view: VectorPerDatum) -> Tensor:
        return embeddings.sum(1) * view.sum(1)

    with pytest.raises(LossContractError, match=r"'view' is a vector per datum, .*: call it view_embedding"):
        loss_of(seen, per="datum")


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0]])
def test_vectors_are_packed_one_a_row_and_chosen_with_their_datums(order: list[int]) -> None:
    loss = loss_of(guided, per="datum")
    data = [datum(1, guide_embedding=vector) for vector in ([1, 2], [0.5, 1.0], [4.0, 5.0])]
    part = loss.pack(data).select(order)
    assert part.inputs["guide_embedding"].tolist() == [[[1, 2], [0.5, 1], [4, 5]][i] for i in order]
    value, gradients, _ = evaluated(loss, data, [[1.0], [2.0], [3.0]])
    assert value == (1 * 3 + 2 * 1.5 + 3 * 9) / 3
    assert_rows_equal(gradients, [[1.0], [0.5], [3.0]], 1e-12)
    assert loss.pack([]).inputs["guide_embedding"].shape == (0, 1)


@pytest.mark.parametrize(
    ("masked", "datum_and_partner"),
    [((1, 4), (1, 0)), ((0, 5), (0, 1)), ((3, 4), (3, 2)), ((0, 1, 2, 5), (2, 3)), ((5,), (5, 4))],
)
def test_of_several_pairs_with_a_lone_side_the_first_is_named(
    masked: tuple[int, ...], datum_and_partner: tuple[int, int]
) -> None:
    data = [datum(1, weights=[float(i not in masked)], ref_logprobs=[-1.0]) for i in range(6)]
    with pytest.raises(AlignmentError) as caught:
        get_loss("dpo").check(data)
    first, partner = datum_and_partner
    assert str(caught.value).startswith(
        f"datum {first} of 6 has no position of non-zero weight while its partner {partner} has"
    )


def test_a_logprob_is_at_most_what_rounding_explains() -> None:
    def data(highest: float) -> list[Datum]:
        return [datum(1, sampling_logprobs=[highest], advantages=[1.0])]

    loss, highest = get_loss("importance_sampling"), torch.tensor([MAX_LOGPROB])
    above = torch.nextafter(highest, torch.tensor(1.0))
    assert float(loss(data(float(highest)), [highest])[0]) == -1
    with pytest.raises(InvalidLogprobError, match=r"sampling_logprobs of datum 0 is 0.0001 at position 0: a log-prob"):
        loss(data(float(above)), [highest])
    with pytest.raises(InvalidLogprobError, match=r"logprobs of datum 0 are 0.0001 at position 0: a log-probability"):
        loss(data(float(highest)), [above])


def test_a_float_is_an_id_below_two_to_the_24() -> None:
    by_class = get_loss("batch_hard_triplet")
    for number in (2.0**23, 2.0**24 - 1, -(2.0**24) + 1):
        by_class.check([datum(1, class_id=one) for one in (number, number, 0.0)])
    for number in (2.0**24, -(2.0**24)):
        with pytest.raises(LabelError, match=r"class_id of datum 0 is .*: give an integer"):
            by_class.check([datum(1, class_id=one) for one in (number, number, 0.0)])
