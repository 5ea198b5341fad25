"""Functions that see every position: NaN and infinity are 0 where the weight is 0, and an error with its place elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook import Datum, get_loss
from lossbook.datums.errors import NonFiniteLossInput
from lossbook.losses import Loss
from lossbook.losses.registry import spec_of_function

from ..cases import datum

NAN, INF = math.nan, math.inf


def handed(data: list[Datum], rows: Sequence[Any], *, output: str = "logprobs") -> tuple[list[Datum], list[Tensor]]:
    """What a function of data and a list of outputs is handed."""
    seen: dict[str, Any] = {}

    def spy(data: Any, tensors: Any) -> Any:
        seen.update(data=data, tensors=tensors)
        return sum(one.sum() for one in tensors), {}

    Loss(spec_of_function(spy, output=output), {})(data, [torch.tensor(row) for row in rows])
    return seen["data"], seen["tensors"]


def message(data: list[Datum], rows: Sequence[Any] | None = None) -> str:
    with pytest.raises(NonFiniteLossInput) as caught:
        handed(data, rows or [[-1.0] * len(one.loss_fn_inputs["target_tokens"]) for one in data])
    return str(caught.value)


def test_a_datum_without_nan_is_handed_over_itself() -> None:
    data = [datum(2, weights=[0, 1], advantages=[1.0, 2.0], label=1), datum(1, weights=[0], advantages=[NAN])]
    seen, _ = handed(data, [[-1.0, -2.0], [-3.0]])
    assert seen[0] is data[0]
    assert seen[1].loss_fn_inputs["advantages"].tolist() == [0]
    assert data[1].loss_fn_inputs["advantages"].tolist() != [0]  # the caller's own is left as it was


@pytest.mark.parametrize(
    ("inputs", "targets", "changed"),
    [
        pytest.param({"weights": [0, 1], "x": [NAN, 2.0]}, 2, [0, 2], id="[N] beside [N]"),
        pytest.param({"weights": [0, 1], "x": [[NAN, INF], [1.0, 2.0]]}, 2, [[0, 0], [1, 2]], id="[N, D] beside [N]"),
        pytest.param(
            {"weights": [[0, 1], [0, 0]], "x": [[NAN, 1.0], [INF, NAN]]}, [[1, 2]] * 2, [[0, 1], [0, 0]], id="[N, K]"
        ),
        pytest.param(
            {"weights": [0, 1, 0, 0], "x": [[NAN, 1.0], [INF, NAN]]}, [[1, 2]] * 2, [[0, 1], [0, 0]], id="flat"
        ),
        pytest.param(
            {"weights": [0, 1], "x": [[NAN, INF], [1.0, 2.0]]}, [[1, 2]] * 2, [[0, 0], [1, 2]], id="[N] beside [N, K]"
        ),
        pytest.param({"weights": [[0, 1], [0, 0]], "x": [1.0, NAN]}, [[1, 2]] * 2, [1, 0], id="[N, K] beside [N]"),
        pytest.param({"weights": [0, 0], "x": NAN}, 2, 0, id="one number, and nothing counts"),
    ],
)
def test_inputs_hold_0_for_nan_where_the_weight_is_0(inputs: dict[str, Any], targets: Any, changed: Any) -> None:
    seen, _ = handed(
        [datum(targets, **inputs)],
        [torch.full_like(torch.tensor(datum(targets).loss_fn_inputs["target_tokens"].tolist()).float(), -1.0).tolist()],
    )
    assert seen[0].loss_fn_inputs["x"].tolist() == changed


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (
            {"weights": [0, 1, 1], "x": [NAN, NAN, INF]},
            "x of datum 1 of 2 is nan at position 1, where the weight is not 0",
        ),
        (
            {"weights": [0, 1, 1], "x": [[NAN, 1.0], [1.0, 2.0], [-INF, NAN]]},
            "x of datum 1 of 2 is -inf at position 2, where the weight is not 0",
        ),
        ({"x": [1.0, 2.0, NAN]}, "x of datum 1 of 2 is nan at position 2"),
        ({"x": NAN}, "x of datum 1 of 2 is nan"),
        ({"weights": [0, 0, 1], "x": INF}, "x of datum 1 of 2 is inf, where the weight is not 0"),
        ({"weights": [0, NAN, INF]}, "weights of datum 1 of 2 is nan at position 1"),
        (
            {"weights": [1, 1, 1], "x": [0.0, 0.0, 0.0, 0.0, NAN]},
            "x of datum 1 of 2 is nan at position 4, where the weight is not 0",
        ),
        ({"weights": [1, 0], "x": [0.0, NAN, 0.0]}, "x of datum 1 of 2 is nan at position 1"),
    ],
)
def test_nan_elsewhere_is_named_with_its_place(inputs: dict[str, Any], said: str) -> None:
    assert message([datum(3, weights=[1, 1, 1]), datum(3, **inputs)]) == f"spy: {said}"


def test_candidates_that_a_position_lacks_stay_minus_infinity() -> None:
    row = [[-1.0, -INF], [-INF, -2.0]]
    seen, _ = handed([datum([[1, 2], [3, 4]], weights=[1.0, 1.0], teacher_logprobs=row)], [[[-1.0, -1.0]] * 2])
    assert seen[0].loss_fn_inputs["teacher_logprobs"].tolist() == row
    wrong = datum([[1, 2], [3, 4]], weights=[1.0, 1.0], teacher_logprobs=[[-1.0, -INF], [-1.0, NAN]])
    assert message([wrong], [[[-1.0, -1.0]] * 2]) == (
        "spy: teacher_logprobs of datum 0 of 1 is nan at position 1, where the weight is not 0"
    )


def test_outputs_hold_0_for_nan_where_the_weight_is_0() -> None:
    data = [datum(2, weights=[0, 1]), datum([[1, 2]], weights=[[1, 0]]), datum(1)]
    _, tensors = handed(data, [[NAN, -1.0], [[-2.0, -INF]], [-3.0]])
    assert [one.tolist() for one in tensors] == [[0, -1], [[-2, 0]], [-3]]


@pytest.mark.parametrize(
    ("datum_1", "row", "said"),
    [
        (datum(3, weights=[0, 1, 1]), [NAN, -INF, NAN], "-inf at position 1"),
        (datum([[1, 2]] * 2, weights=[[1, 1], [1, 1]]), [[-1.0, -1.0], [NAN, -1.0]], "nan at position 1"),
    ],
)
def test_an_output_that_is_no_number_is_named_with_its_place(datum_1: Datum, row: Any, said: str) -> None:
    said_so = message([datum(1, weights=[1]), datum_1], [[-1.0], row])
    assert said_so.startswith(f"spy: the model's logprobs of datum 1 are {said}, where the weight is not 0.")


def test_where_no_weight_says_what_is_read_outputs_pass_as_they_are() -> None:
    _, tensors = handed([datum(2)], [[-1.0, -INF]])
    assert tensors[0].tolist() == [-1, -INF]
    _, tensors = handed([datum(2, weights=[0, 1])] * 2, [[1.0, INF, 2.0], [0.0, 1.0, 2.0]], output="embeddings")
    assert tensors[0].tolist() == [1, INF, 2]


def test_out_of_a_mixture_each_datum_gets_its_own_numbers() -> None:
    seen: list[Any] = []

    def of_tokens(data: Any, logprobs_list: Any) -> Any:
        seen.append([row.tolist() for row in logprobs_list])
        return sum(row.sum() for row in logprobs_list), {}

    data = [datum([[1, 2], [3, 4]]), datum(2), datum([[1, 2, 3]])]
    rows = [[[-1.0, -2.0], [-3.0, -4.0]], [-5.0, -6.0], [[-7.0, -8.0, -9.0]]]
    (get_loss(of_tokens) + get_loss("cross_entropy"))(data, [torch.tensor(row) for row in rows])
    assert seen == [rows]

    def of_texts(data: Any, embeddings: Any) -> Any:
        seen.append([row.tolist() for row in embeddings])
        return sum(row.sum() for row in embeddings), {}

    texts = [[1.0, 0.0, 0.5], [0.0, 1.0, 0.25]]
    own = Loss(spec_of_function(of_texts, output="embeddings"), {})
    (own + get_loss("info_nce"))([Datum([0], {})] * 2, {"embeddings": [torch.tensor(row) for row in texts]})
    assert seen[1] == texts
